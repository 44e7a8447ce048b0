# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""All trainers read rows of every form, and name the dataset, the row and the column of what they cannot use."""

import pytest
from conftest import make_model, make_tokenizer
from dataset_forms import BAD, GOOD, QUESTION, TALK
from datasets import Dataset
from tiny_trainers import METHODS, PROMPTS, make_trainer

from trl_ext import RRHFConfig, RRHFTrainer
from trl_ext.data.schema import DataError
from trl_ext.data.token_ids import check_token_ids, check_token_ids_of_rows
from trl_ext.data.tokenization import encode_prompt


REFUSING = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    "{% for m in messages %}{% if m['content'] == 'bad' %}{{ raise_exception('no such answer') }}{% endif %}"
    "{{ m['content'] }}{% endfor %}"
)


def trainer_of(method, folder, rows, **settings):
    """VAS samples only for prompts."""
    return make_trainer(method, folder, rows, **({"resample_steps": 0} if method == "vas" else {}), **settings)


# ------------------------------------------------------------------------------------------------------------- forms


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("row", "prompt"),
    [
        ({"chosen": f"{TALK} I am.", "rejected": f"{TALK} I was."}, TALK),
        ({"question": "the film", "chosen": "was good", "rejected": "was bad"}, "the film"),
        ({"prompt": "one", "answers": [{"answer": "a", "rank": 1}, {"answer": "b", "rank": 2}]}, "one"),
    ],
    ids=["transcripts", "question", "ranks"],
)
def test_all_trainers_find_the_same_prompt(tmp_path, method, row, prompt):
    trainer = trainer_of(method, tmp_path, [row] * 4)
    assert trainer.train_dataset[0]["prompt_ids"] == encode_prompt(make_tokenizer(), prompt)


@pytest.mark.parametrize("method", METHODS)
def test_columns_reach_all_datasets(tmp_path, method):
    rows = [{"ask": "the film", "chosen": " good", "rejected": " bad"}] * 4
    trainer = trainer_of(method, tmp_path, rows, eval_rows=rows, columns={"prompt": "ask"}, eval_strategy="steps")
    expected = encode_prompt(make_tokenizer(), "the film")
    for dataset in (trainer.train_dataset, trainer.eval_dataset):
        assert dataset[0]["prompt_ids"] == expected


@pytest.mark.parametrize("method", METHODS)
def test_images_are_refused(tmp_path, method):
    with pytest.raises(DataError, match=r"The train dataset has a column 'images', but the methods here"):
        make_trainer(method, tmp_path, [{"prompt": "a", "images": ["x"]}])


@pytest.mark.parametrize("column", ["response", "answer", "output", "completion"])
def test_answers_without_scores_are_named(tmp_path, column):
    rows = [{"prompt": "the film", column: " good"}]
    with pytest.raises(DataError, match=f"lacks the column 'scores'; it has 'prompt', '{column}'"):
        rrhf(tmp_path, rows)
    assert "completion_ids" not in make_trainer("rrhf", tmp_path, rows).train_dataset.column_names


def test_columns_that_are_not_known_are_named(tmp_path):
    with pytest.raises(DataError, match=r"prompts but no completions; its columns are 'prompt', 'reply'.*`columns"):
        rrhf(tmp_path, [{"prompt": "the film", "reply": " good"}])


# ------------------------------------------------------------------------------------------------------------ errors


def rrhf(folder, rows, eval_dataset=None, tokenizer=None):
    tokenizer = tokenizer or make_tokenizer()
    return RRHFTrainer(
        make_model(len(tokenizer)),
        args=RRHFConfig(str(folder), report_to="none"),
        train_dataset=Dataset.from_list(rows),
        eval_dataset=eval_dataset,
        processing_class=tokenizer,
    )


def refusing():
    tokenizer = make_tokenizer()
    tokenizer.chat_template = REFUSING
    return tokenizer


GOOD_ROW = {"prompt": QUESTION, "chosen": GOOD, "rejected": BAD}


@pytest.mark.parametrize(
    ("change", "place", "problem"),
    [
        (
            {"prompt": [{"role": "system", "content": "x"}, *QUESTION]},
            "column 'prompt'",
            "no system role.*chat_template_path",
        ),
        ({"chosen": [{"role": "assistant", "content": "bad"}]}, "column 'completions'", "no such answer"),
        ({"tools": " "}, "column 'tools'", "is text that is no JSON"),
        ({"chat_template_kwargs": "{"}, "column 'chat_template_kwargs'", "JSONDecodeError"),
    ],
    ids=["prompt", "completion", "tools", "kwargs"],
)
@pytest.mark.parametrize("name", ["train", "second"])
def test_whatever_a_row_raises_names_its_place(tmp_path, change, place, problem, name):
    rows = [GOOD_ROW | {column: None for column in change if column not in GOOD_ROW}] * 2
    bad = [*rows, GOOD_ROW | change]
    with pytest.raises(DataError, match=f"(?s)Row 2 of the {name} dataset, {place}: .*{problem}"):
        if name == "train":
            rrhf(tmp_path, bad, tokenizer=refusing())
        else:
            evals = {"first": Dataset.from_list(rows), "second": Dataset.from_list(bad)}
            rrhf(tmp_path, rows, evals, tokenizer=refusing())


@pytest.mark.parametrize("method", METHODS)
def test_a_template_that_refuses_a_prompt_names_it_for_every_trainer(tmp_path, method):
    rows = [{"prompt": QUESTION}, {"prompt": [{"role": "system", "content": "x"}, *QUESTION]}]
    more = {"principle_role": "user"} if method == "psle" else {}
    with pytest.raises(DataError, match=r"Row 1 of the train dataset, column 'prompt': .*no system role"):
        make_trainer(method, tmp_path, rows, tokenizer=refusing(), **more)


@pytest.mark.parametrize("method", ["rrhf", "psle", "vas"])
def test_a_token_without_an_embedding_is_named_before_training(tmp_path, monkeypatch, method):
    """As after `tokenizer.add_tokens` without a larger model."""
    module = "methods.vas.trainer" if method == "vas" else "training.online_trainer"
    monkeypatch.setattr(f"trl_ext.{module}.embedding_rows", lambda model: 7)
    with pytest.raises(DataError, match=r"Row 0 of .*, column 'prompt': token \d+ \('.*'\) has no embedding"):
        make_trainer(method, tmp_path)


def test_only_tokens_that_occur_need_an_embedding():
    tokenizer = make_tokenizer()
    size = len(tokenizer)
    tokenizer.add_tokens(["<verdict>"])
    rows = Dataset.from_list([{"row_index": 3, "prompt_ids": [1, 2], "completion_ids": [[3], [4]]}])
    assert check_token_ids_of_rows(rows, size, tokenizer, name="train") is rows
    bad = Dataset.from_list([{"row_index": 3, "prompt_ids": [1, 2], "completion_ids": [[3], [4, size]]}])
    with pytest.raises(DataError, match=r"Row 3 of .*'completions': token .* \('<verdict>'\).*resize_token_embed"):
        check_token_ids_of_rows(bad, size, tokenizer, name="train")
    check_token_ids_of_rows(bad, 0, tokenizer, name="train")  # not known
    check_token_ids([], size, tokenizer)


def test_rewards_receive_the_columns_of_the_dataset(tmp_path):
    """A reward function may compare with the answer of the dataset."""
    seen = {}

    def reward(completions, answer, **columns):
        seen["answer"] = answer
        return [0.0] * len(completions)

    rows = [{"question": row["prompt"], "answer": "42"} for row in PROMPTS]
    make_trainer("rrhf", tmp_path, rows, reward_funcs=reward, max_steps=1).train()
    assert set(seen["answer"]) == {"42"}
