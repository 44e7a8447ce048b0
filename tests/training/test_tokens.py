# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Tokens trained = tokens sampled = tokens scored, for all methods: text, and templates that treat reasoning alike."""

import json

import pytest
from conftest import letter_reward, make_llama2_tokenizer, make_model
from thinking import END, TEMPLATES, make_byte_tokenizer
from tiny_trainers import METHODS, make_trainer

from trl_ext.data.tokenization import encode_prompt
from trl_ext.generation.generate import generate
from trl_ext.generation_settings import GenerationSettings, eos_token_ids
from trl_ext.inference.dataset_sampler import DatasetSampler
from trl_ext.inference.policy import model_policy
from trl_ext.rewards.functions import load_rewards
from trl_ext.seeds import seeded


PROMPTS = {"text": ["the film: ", "I found "], "chat": [[{"role": "user", "content": x}] for x in ("film?", "f ")]}
CASES = [("text", "plain"), ("text", "llama2"), *(("chat", template) for template in TEMPLATES)]
SETTINGS = GenerationSettings(num_generations=3, max_completion_length=5, temperature=2.0)


def make(template):
    """Of Llama 2's kind, where a space is put before every text, or a byte-level tokenizer with a chat template."""
    return make_llama2_tokenizer() if template == "llama2" else make_byte_tokenizer(template)


def sample(tokenizer, prompts):
    """Rows as `trl-ext sample` writes them and reads them back, and the ids that `generate` returns for them."""
    model = make_model(len(tokenizer))
    sampler = DatasetSampler([model_policy(model, tokenizer)], SETTINGS, load_rewards([letter_reward]), seed=1)
    rows = sampler([{"prompt": prompt} for prompt in prompts], range(len(prompts))).rows
    with seeded(1, 0, 0):
        groups = generate(model, tokenizer, [encode_prompt(tokenizer, prompt) for prompt in prompts], SETTINGS)
    return json.loads(json.dumps(rows)), [[completion.ids for completion in group] for group in groups]


@pytest.mark.parametrize(("form", "template"), CASES)
@pytest.mark.parametrize("method", METHODS)
def test_tokens_of_a_sampled_dataset(method, form, template, tmp_path):
    """The oracle is the model's own generation from the prompts as inference encodes them."""
    tokenizer = make(template)
    rows, sampled = sample(tokenizer, PROMPTS[form])
    trainer = make_trainer(method, tmp_path, rows, tokenizer=tokenizer, resample_steps=None, max_length=200)
    for row, prompt, ids in zip(trainer.train_dataset, PROMPTS[form], sampled, strict=True):
        assert row["prompt_ids"] == encode_prompt(tokenizer, prompt)
        if method in ("rrhf", "vas"):  # the others generate their completions themselves
            assert row["completion_ids"] == ids


@pytest.mark.parametrize(("form", "template"), [("text", "plain"), ("chat", "r1"), ("chat", "qwen3.5")])
@pytest.mark.parametrize("method", ["rrhf", "vas", "psle"])
def test_tokens_of_completions_that_training_generates(method, form, template, tmp_path, monkeypatch):
    """The prompts of a round are whole, although the rows have completions, and the batch has what was generated."""
    tokenizer, seen, scored = make_byte_tokenizer(template), [], []

    def reward(completions, completion_ids, **_):
        texts = [c if isinstance(c, str) else c[0]["content"] for c in completions]
        scored.extend(zip(texts, completion_ids, strict=True))
        return [float(len(text)) for text in texts]

    def spy(self, rows, *args, **kwargs):
        rounds = original(self, rows, *args, **kwargs)
        seen.extend((row["prompt_ids"], rounds.rollouts[row["row_index"]].completion_ids) for row in rows)
        return rounds

    rows = sample(tokenizer, PROMPTS[form])[0]
    if method == "vas":  # new completions after the first round, of the dataset's
        settings = {"num_iterations": 2, "num_train_epochs": 2, "sampling_beta": 0.0, "resample_steps": None}
    else:
        settings = {"max_steps": 1}
    trainer = make_trainer(
        method, tmp_path, rows, tokenizer=tokenizer, reward_funcs=reward, max_length=200, **settings
    )
    original = type(trainer)._sample_round
    monkeypatch.setattr(type(trainer), "_sample_round", spy)
    trainer.train()
    whole = {tuple(encode_prompt(tokenizer, prompt)) for prompt in PROMPTS[form]}
    assert {tuple(prompt) for prompt, _ in seen} == whole
    for text, ids in scored:
        assert tokenizer.decode(ids, skip_special_tokens=True) == text
    if method != "vas":  # whose first round is the dataset's
        assert [ids for _, group in seen for ids in group] == [ids for _, ids in scored]


@pytest.mark.parametrize("method", METHODS)
def test_the_setting_for_chat_templates_reaches_training_and_evaluation(method, tmp_path):
    tokenizer = make_byte_tokenizer("qwen3.5")
    rows = [{"prompt": prompt} for prompt in PROMPTS["chat"]]
    off = {"enable_thinking": False}
    trainer = make_trainer(
        method, tmp_path, rows, eval_rows=rows, tokenizer=tokenizer, chat_template_kwargs=off, max_length=200
    )
    for dataset in (trainer.train_dataset, trainer.eval_dataset):
        expected = [encode_prompt(tokenizer, prompt, **off) for prompt in PROMPTS["chat"]]
        assert list(dataset["prompt_ids"]) == expected
    if method == "psle":
        assert all(tokenizer.decode(row["guided_ids"][0]).endswith("</think>\n\n") for row in trainer.train_dataset)


@pytest.mark.parametrize("method", METHODS)
def test_a_turn_that_ends_in_another_token_is_told_and_mended(method, tmp_path, caplog):
    rows = [{"prompt": prompt} for prompt in PROMPTS["chat"]]
    end = make_byte_tokenizer().convert_tokens_to_ids(END)
    tokenizer = make_byte_tokenizer("plain", eos="<|endoftext|>")
    make_trainer(method, tmp_path, rows, tokenizer=tokenizer, max_length=200)
    assert sum("set eos_token='<|im_end|>'" in record.getMessage() for record in caplog.records) == 1
    caplog.clear()
    trainer = make_trainer(method, tmp_path, rows, tokenizer=tokenizer, max_length=200, eos_token=END)
    assert not any("eos_token" in record.getMessage() for record in caplog.records)
    model = {"vas": "policy", "proxy_rlhf": "language_model"}.get(method, "model")
    model = getattr(trainer, model)
    assert tokenizer.eos_token_id == end
    assert end in eos_token_ids(model, tokenizer)
    assert end in model.generation_config.eos_token_id
    assert model.config.eos_token_id == end


def test_an_end_token_that_the_vocabulary_lacks(tmp_path):
    with pytest.raises(ValueError, match=r"`eos_token`: '<nope>' is not in the vocabulary"):
        make_trainer("rrhf", tmp_path, eos_token="<nope>")


def test_completions_of_the_dataset_are_scored_as_they_are_cut(tmp_path):
    """`keep_dataset_completions` scores them again beside sampled ones."""
    scored = []

    def reward(completions, completion_ids, **_):
        scored.extend(zip(completions, completion_ids, strict=True))
        return [0.0] * len(completions)

    tokenizer = make_byte_tokenizer()
    rows = [{"prompt": "the film", "completions": [" was good", " so"], "scores": [1.0, 0.0]}]
    trainer = make_trainer(
        "rrhf", tmp_path, rows, tokenizer=tokenizer, reward_funcs=reward, max_length=12, max_steps=1,
        max_completion_length=3, keep_dataset_completions=True, per_device_train_batch_size=1,
    )  # fmt: skip
    trainer.train()
    texts = [text for text, _ in scored]
    assert " was " in texts  # the prompt has 7 tokens
    assert " was good" not in texts
    assert all(tokenizer.decode(ids, skip_special_tokens=True) == text for text, ids in scored)
