# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Value models of the forms "action" and "policy": values, storage, decoding and training, against plain loops."""

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import letter_reward, make_model, make_tokenizer
from datasets import Dataset
from oracles.guided_decoding import (
    PROMPTS,
    K,
    greedy,
    guided_logits,
    make_value,
    randomize,
    run_generate,
    token_value,
)
from oracles.values import oracle_loss, rows_scored_by_letters
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForCausalLM, TrainerCallback

from trl_ext import ValueAugmentedLogitsProcessor, ValueConfig, ValueModel, VASConfig, VASTrainer
from trl_ext.data.tokenization import left_padded
from trl_ext.generation.generate import generate
from trl_ext.generation_settings import GenerationSettings
from trl_ext.methods.vas.policies import VASDecoding, guided_policy


LORA = {"r": 4, "target_modules": "all-linear"}
FORMS = ["action", "policy"]


# ------------------------------------------------------------------------------------------------------------- values


@pytest.mark.parametrize("heads", [("reward",), ("a", "b")], ids=["one head", "two heads"])
@pytest.mark.parametrize("form", FORMS)
def test_value_of_a_token_comes_from_the_hidden_state_before_it(form: str, heads: tuple[str, ...]) -> None:
    model = make_value(form, make_model(64), heads)
    row = [5, 9, 3, 7, 4]
    expected = torch.tensor([[token_value(model, row[:t], row[t], h) for h in range(len(heads))] for t in range(1, 5)])
    for left, right in ((0, 0), (2, 0), (0, 2)):
        ids = torch.tensor([[63] * left + row + [63] * right])
        mask = torch.tensor([[0] * left + [1] * 5 + [0] * right])
        values = model(ids, attention_mask=mask).values[0].view(len(ids[0]), -1)
        torch.testing.assert_close(values[left + 1 : left + 5], expected, rtol=1e-4, atol=1e-4)
        assert values[: left + 1].isnan().all(), "no state is before the first token"
    ids = torch.tensor([row])
    given = model(ids[:, :-1], next_ids=ids[:, 1:]).values[0].view(4, -1)
    torch.testing.assert_close(given, expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="next_ids"):
        model(inputs_embeds=model.get_input_embeddings()(ids))


@pytest.mark.parametrize("form", FORMS)
def test_values_of_few_tokens_equal_those_of_the_complete_vocabulary(form: str) -> None:
    model = make_value(form, make_model(64), ("a", "b"))
    hidden = torch.randn(4, 64, generator=torch.Generator().manual_seed(0))
    every = model.action_values(hidden, torch.arange(64).expand(4, -1))
    assert every.shape == (4, 64, 2) and every.dtype == torch.float32
    some = torch.tensor([[3, 9], [0, 63], [5, 5], [8, 1]])
    torch.testing.assert_close(
        model.action_values(hidden, some), every.gather(1, some[..., None].expand(-1, -1, 2)), rtol=1e-5, atol=1e-5
    )
    with pytest.raises(ValueError, match="action_values"):
        model.value_of(hidden)


@pytest.mark.parametrize("form", FORMS)
def test_values_start_at_zero_and_have_gradients(form: str) -> None:
    policy = make_model(64)
    kwargs: dict[str, Any] = {"form": form, "action_rank": 5}
    make = ValueModel.on_policy if form == "policy" else ValueModel.from_backbone
    model = make(policy, **kwargs)
    values = model(torch.tensor([[5, 9, 3, 7]])).values[:, 1:]
    assert (values == 0).all()
    assert model.action.actions.weight.detach().norm(dim=1).mean().item() == pytest.approx(1.0, abs=0.15)
    values.sum().backward()
    assert model.action.query.weight.grad.abs().sum() > 0 and model.head.weight.grad.abs().sum() > 0
    trained = {name.split(".")[0] for name, p in model.named_parameters() if p.requires_grad}
    assert trained == ({"head", "action"} if form == "policy" else {"backbone", "head", "action"})
    assert (model.backbone.embed_tokens.weight.grad is None) == (form == "policy")


@pytest.mark.parametrize("rank", [5, 100])
@pytest.mark.parametrize("form", FORMS)
def test_action_embeddings_are_initialised_from_token_embeddings(form: str, rank: int) -> None:
    """Similar embeddings give similar actions; columns are standardised, so that a large one does not dominate."""
    policy = make_model(64)
    with torch.no_grad():
        policy.lm_head.weight.copy_(policy.model.embed_tokens.weight)
        for weight in (policy.lm_head.weight, policy.model.embed_tokens.weight):
            weight[7] = weight[9]
            weight[11] = 2 * weight.mean(0) - weight[9]
            weight[:, 3] = weight[:, 3] * 1000 + 5
    make = ValueModel.on_policy if form == "policy" else ValueModel.from_backbone
    actions = make(policy, form=form, action_rank=rank).action.actions.weight.detach()
    torch.testing.assert_close(actions.norm(dim=1), torch.ones(64))
    torch.testing.assert_close(actions[7], actions[9])
    assert actions[9] @ actions[11] < -0.9
    assert actions[20:40].mean(0).norm() < 0.6, "one large column does not decide"


def test_invalid_settings(tmp_path: Path) -> None:
    policy = make_model(64)
    with pytest.raises(ValueError, match="must be one of state, action, policy"):
        ValueConfig(form="future")
    with pytest.raises(ValueError, match="action_rank"):
        ValueConfig(form="action", action_rank=0)
    with pytest.raises(ValueError, match="on_policy"):
        ValueModel.from_backbone(policy, form="policy")
    with pytest.raises(ValueError, match="takes no adapter"):
        ValueModel.on_policy(policy, form="policy", peft_config=LoraConfig(**LORA))
    with pytest.raises(ValueError, match="needs an adapter"):
        ValueModel.on_policy(policy)
    make_value("policy", policy).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"a head on a backbone whose name is unknown.*backbone=model"):
        ValueModel.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"hidden size 64 with 64 tokens; `backbone` has 64 and 80"):
        ValueModel.from_pretrained(tmp_path, backbone=make_model(80))


@pytest.mark.parametrize("form", ["full", "lora", "lora on the policy", "policy"])
def test_saving_and_loading(tmp_path: Path, tiny_model_dir: str, form: str) -> None:
    policy = AutoModelForCausalLM.from_pretrained(tiny_model_dir).eval()
    heads, action = ["kind", "short"], {"form": "action", "action_rank": 3}
    lora = LoraConfig(**LORA) if "lora" in form else None
    if form == "policy":
        model = ValueModel.on_policy(policy, heads, form="policy", action_rank=3)
    elif form == "lora on the policy":
        model = ValueModel.on_policy(policy, heads, peft_config=lora, **action)
    else:
        model = ValueModel.from_backbone(tiny_model_dir, heads, peft_config=lora, **action)
    randomize(model)
    ids = torch.tensor([[5, 9, 3, 7]])
    expected = model(ids).values[:, 1:]
    model.save_pretrained(tmp_path / "value")
    names = set(load_file(tmp_path / "value" / "model.safetensors"))
    own = {"head.weight", "head.bias", "action.query.weight", "action.actions.weight"}
    assert (names == own) == (form != "full") and own <= names
    made = [cls.from_pretrained(tmp_path / "value") for cls in (ValueModel, AutoModel)]
    if form != "full":
        made.append(ValueModel.from_pretrained(tmp_path / "value", backbone=copy.deepcopy(policy)))
    for found in made:
        assert found.config.form == model.config.form and not found.training
        torch.testing.assert_close(found(ids).values[:, 1:], expected)
        trained = [name for name, p in found.named_parameters() if p.requires_grad and ".trl_ext_value." not in name]
        assert (
            not trained or form == "full"
        )  # the policy's copy has the first adapter, called "trl_ext_value", as it was
    further = ValueModel.from_pretrained(tmp_path / "value", is_trainable=True)
    trainable = {name for name, p in further.named_parameters() if p.requires_grad}
    assert own <= trainable and (form != "policy" or trainable == own)


def test_heads_are_float32_and_the_policy_stays_in_evaluation_mode() -> None:
    policy = make_model(64).to(torch.bfloat16)
    model = make_value("policy", policy)
    assert model.action.query.weight.dtype == torch.float32 and policy.dtype == torch.bfloat16
    model.train()
    assert model.training and not model.backbone.training
    with torch.autocast("cpu", torch.bfloat16):
        assert model(torch.tensor([[5, 9]])).values.dtype == torch.float32


# ------------------------------------------------------------------------------------------------------------ decoding


@pytest.mark.parametrize("beta", [2.0, -2.0])
def test_action_values_read_one_token_per_step(tiny_model: Any, beta: float) -> None:
    """For each row of a left-padded batch, over several steps whose token was a candidate or not."""
    value = make_value("action", tiny_model)
    processor = ValueAugmentedLogitsProcessor(value, beta, K, pad_token_id=0)
    ids, mask = left_padded(PROMPTS, 0)
    for step in range(5):
        with torch.no_grad():
            positions = (mask.cumsum(1) - 1).clamp(min=0)
            logits = tiny_model(ids, attention_mask=mask, position_ids=positions).logits[:, -1]
        found = processor(ids, logits)
        for n in range(len(ids)):
            row = ids[n][mask[n].bool()].tolist()
            torch.testing.assert_close(
                found[n], guided_logits(tiny_model, [(value, 0, beta)], row), rtol=1e-4, atol=1e-4
            )
        assert processor.value_calls == step + 1
        assert processor.value_tokens == ids.shape[0] * ids.shape[1]
        chosen = found.topk(3).indices[:, 2:] if step % 2 else found.argmin(1, keepdim=True)
        ids, mask = torch.cat([ids, chosen], 1), torch.cat([mask, torch.ones_like(chosen)], 1)
    again = processor(ids[:, :-1], logits)
    torch.testing.assert_close(again, found, rtol=1e-4, atol=1e-4)  # the same call again, after shorter sequences
    torch.testing.assert_close(processor(ids[:, :-1], logits), found, rtol=1e-4, atol=1e-4)
    prompt, one = torch.tensor([[5]]), logits[:1]
    torch.testing.assert_close(processor(prompt, one), processor(prompt, one))


@pytest.mark.parametrize("form", FORMS)
def test_generate_with_and_without_cache(tiny_model: Any, form: str) -> None:
    value = make_value(form, tiny_model)
    processor = ValueAugmentedLogitsProcessor(value, 3.0, K)
    expected = [greedy(tiny_model, [(value, 0, 3.0)], prompt, 6) for prompt in PROMPTS]
    assert expected != [greedy(tiny_model, [], prompt, 6) for prompt in PROMPTS]
    for kwargs in ({}, {"use_cache": False}, {"cache_implementation": "static"}, {"prefill_chunk_size": 3}):
        if "prefill_chunk_size" in kwargs:
            assert run_generate(tiny_model, processor, PROMPTS[2:3], 6, **kwargs) == expected[2:3]
        else:
            assert run_generate(tiny_model, processor, PROMPTS, 6, **kwargs) == expected, kwargs
    assert run_generate(tiny_model, processor, PROMPTS[2:3], 6) == expected[2:3]  # other prompts
    if form == "policy":
        assert (processor.value_calls, processor.value_tokens) == (0, 0)


@pytest.mark.parametrize("guess", ["prompt_lookup_num_tokens", "assistant_model"])
@pytest.mark.parametrize("form", FORMS)
def test_assisted_generation(tiny_model: Any, form: str, guess: str) -> None:
    """
    One forward pass of the language model is followed by several calls of the processor, some of them for tokens that
    it has not read. The prompt repeats itself, so that tokens are looked up in it.
    """
    value = make_value(form, tiny_model)
    processor = ValueAugmentedLogitsProcessor(value, 3.0, K)
    prompt = PROMPTS[2] + PROMPTS[2][:2]
    kwargs = {guess: 3 if guess.startswith("prompt") else make_model(tiny_model.config.vocab_size, seed=9)}
    if form == "policy":
        with pytest.raises(ValueError, match=r"Assisted decoding .* leave them out, or use a value model of the form"):
            run_generate(tiny_model, processor, [prompt], 8, **kwargs)
        return
    expected = greedy(tiny_model, [(value, 0, 3.0)], prompt, 8)
    assert run_generate(tiny_model, processor, [prompt], 8, **kwargs) == [expected]


def test_classifier_free_guidance(tiny_model: Any) -> None:
    """Its second forward pass, over the last token alone, is not taken for the first."""
    processor = ValueAugmentedLogitsProcessor(make_value("policy", tiny_model), 3.0, K)
    with pytest.raises(ValueError, match="`guidance_scale` make others in between: leave them out"):
        run_generate(tiny_model, processor, PROMPTS[2:3], 4, guidance_scale=1.5)


@pytest.mark.parametrize("form", FORMS)
def test_beam_search_of_each_form(tiny_model: Any, form: str) -> None:
    """Scores of each step against the oracle, whatever order the search brings the rows into."""
    value = make_value(form, tiny_model)
    inner = ValueAugmentedLogitsProcessor(value, 3.0, K)
    steps = []

    class Checked:
        def __call__(self, ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            found = inner(ids, scores)
            for n, row in enumerate(ids.tolist()):
                guided = guided_logits(tiny_model, [(value, 0, 3.0)], row) - tiny_model(ids[n : n + 1]).logits[0, -1]
                torch.testing.assert_close(found[n] - scores[n], guided.detach(), rtol=1e-3, atol=1e-3)
            steps.append(ids.shape)
            return found

    same = [PROMPTS[0], [22, 23, 24]]
    run_generate(tiny_model, Checked(), same, 5, num_beams=3, num_return_sequences=3)
    assert steps[0] == (6, 3) and len(steps) == 5


@pytest.mark.parametrize("form", FORMS)
def test_sampling_and_log_probabilities_of_the_policy(tiny_model: Any, tiny_tokenizer: Any, form: str) -> None:
    value = make_value(form, tiny_model)
    policy = guided_policy(tiny_model, tiny_tokenizer, value, 3.0, K, batch_size=6)
    settings = GenerationSettings(num_generations=3, max_completion_length=5, top_k=1)
    expected = [greedy(tiny_model, [(value, 0, 3.0)], prompt, 5) for prompt in PROMPTS]
    assert [[c.ids for c in row] for row in policy.generate(PROMPTS, settings)] == [[row] * 3 for row in expected]
    assert policy.weights is not None
    [name] = policy.weights.values
    other = policy.weights.change({name: 0.5})
    expected = [greedy(tiny_model, [(value, 0, 0.5)], prompt, 5) for prompt in PROMPTS]
    assert [row[0].ids for row in other.generate(PROMPTS, settings)] == expected
    completions = [[[22, 23, 24], [25]], [[26, 27], []], [[28, 29, 30, 31, 1]], [[32], [33, 34]]]
    for prompt, group, rows in zip(PROMPTS, completions, policy.logps(PROMPTS, completions), strict=True):
        for completion, logps in zip(group, rows, strict=True):
            for t, token in enumerate(completion):
                guided = guided_logits(tiny_model, [(value, 0, 3.0)], [*prompt, *completion[:t]])
                assert float(logps[t]) == pytest.approx(float(guided.log_softmax(-1)[token]), abs=1e-4)


def test_forms_combined_with_weights_per_row(tiny_model: Any) -> None:
    models = {
        "exact": make_value("state", tiny_model, seed=1),
        "cheap": make_value("action", tiny_model, ("a", "b"), seed=2),
        "free": make_value("policy", tiny_model, seed=3),
    }
    rows = [{"exact": 2.0, "b": -1.0}, {"free": 3.0}, {"exact": 1.0, "a": 1.0, "free": -2.0}, {}]
    places = {"exact": (models["exact"], 0), "a": (models["cheap"], 0), "b": (models["cheap"], 1)}
    places["free"] = (models["free"], 0)
    processor = ValueAugmentedLogitsProcessor(models, rows, K)
    assert processor.heads == ("exact", "cheap/a", "cheap/b", "free")
    expected = [
        greedy(tiny_model, [(*places[name], beta) for name, beta in row.items()], prompt, 5)
        for row, prompt in zip(rows, PROMPTS, strict=True)
    ]
    assert run_generate(tiny_model, processor, PROMPTS, 5) == expected
    processor.beta = {"free": 2.0}
    expected = [greedy(tiny_model, [(models["free"], 0, 2.0)], prompt, 5) for prompt in PROMPTS]
    calls = processor.value_calls
    assert run_generate(tiny_model, processor, PROMPTS, 5) == expected
    assert processor.value_calls == calls, "heads without weight are not computed"


@pytest.mark.parametrize("form", FORMS)
def test_complete_vocabulary_as_candidates(tiny_model: Any, tiny_tokenizer: Any, form: str) -> None:
    value, vocabulary = make_value(form, tiny_model), len(tiny_tokenizer)
    processor = ValueAugmentedLogitsProcessor(value, 3.0, vocabulary)
    expected = [greedy(tiny_model, [(value, 0, 3.0)], prompt, 4, k=vocabulary) for prompt in PROMPTS[:2]]
    assert run_generate(tiny_model, processor, PROMPTS[:2], 4) == expected


def test_hidden_states_of_another_model_or_text_are_rejected(
    tiny_model: Any, tmp_path: Path, tiny_model_dir: str
) -> None:
    value = make_value("policy", tiny_model)
    processor = ValueAugmentedLogitsProcessor(value, 3.0, K)
    ids = torch.tensor([[5, 6, 7]])
    scores = torch.zeros(1, tiny_model.config.vocab_size)
    with pytest.raises(ValueError, match="has not computed anything"):
        processor(ids, scores)
    with torch.no_grad():
        scores = tiny_model(ids).logits[:, -1]
    torch.testing.assert_close(processor(ids, scores)[0], guided_logits(tiny_model, [(value, 0, 3.0)], [5, 6, 7]))
    with pytest.raises(ValueError, match="over other tokens"):
        tiny_model(ids)
        processor(ids + 1, scores)
    with pytest.raises(ValueError, match="read 1 rows up to column 3, the sequences have 1 and 4"):
        processor(torch.tensor([[5, 6, 7, 8]]), scores)
    processor.reset()
    with pytest.raises(ValueError, match="has not computed anything"):
        run_generate(make_model(tiny_model.config.vocab_size), processor, PROMPTS)
    policy = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    make_value("policy", policy).save_pretrained(tmp_path)
    alone = ValueModel.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="backbone=model"):
        ValueAugmentedLogitsProcessor(alone)


def test_another_vocabulary_is_rejected(tiny_model: Any, tiny_tokenizer: Any, chat_tokenizer: Any) -> None:
    other = make_tokenizer()
    vocabulary = other.get_vocab()
    value = make_value("action", tiny_model)
    value.config.vocabulary = "of another tokenizer"
    names: dict[str, Any] = {"tokenizer": tiny_tokenizer, "retokenize": True}
    with pytest.raises(ValueError, match="trained with another vocabulary"):
        ValueAugmentedLogitsProcessor(value, tokenizer=tiny_tokenizer)
    document = other.backend_tokenizer.to_str().replace('"film"', '"films"')
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    changed = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(document), pad_token="<|pad|>")
    assert len(changed.get_vocab()) == len(vocabulary)
    with pytest.raises(ValueError, match="tokens of its own vocabulary"):
        ValueAugmentedLogitsProcessor(value, value_tokenizer=changed, **names)


def test_flags_with_a_head_on_the_language_model(tmp_path: Path, tiny_model_dir: str) -> None:
    policy = AutoModelForCausalLM.from_pretrained(tiny_model_dir).eval()
    tokenizer = make_tokenizer(chat=True)
    free, cheap = make_value("policy", policy), make_value("action", policy)
    free.save_pretrained(tmp_path / "free")
    cheap.save_pretrained(tmp_path / "cheap")
    decoding = VASDecoding(
        [str(tmp_path / "free"), str(tmp_path / "cheap")], beta=["free=2", "free=1,cheap=-1"], guide_top_k=K
    )
    guides = [[(free, 0, 2.0)], [(free, 0, 1.0), (cheap, 0, -1.0)]]
    settings = GenerationSettings(num_generations=1, max_completion_length=4, top_k=1)
    for made, guide in zip(decoding.policies(policy, tokenizer, name="base", batch_size=4), guides, strict=True):
        found = [row[0].ids for row in made.generate(PROMPTS, settings)]
        assert found == [greedy(policy, guide, prompt, 4) for prompt in PROMPTS]


def test_policy_form_with_an_adapter_on_the_language_model(tiny_model: Any) -> None:
    torch.manual_seed(0)
    adapted = get_peft_model(tiny_model, LoraConfig(**LORA, init_lora_weights=False)).eval()
    value = make_value("policy", adapted)
    processor = ValueAugmentedLogitsProcessor(value, 3.0, K)
    expected = [greedy(adapted, [(value, 0, 3.0)], prompt, 4) for prompt in PROMPTS]
    assert run_generate(adapted, processor, PROMPTS, 4) == expected


def test_hook_is_removed_with_the_value_model(tiny_model: Any) -> None:
    before = len(tiny_model.model._forward_hooks)
    value = make_value("policy", tiny_model)
    assert len(tiny_model.model._forward_hooks) == before + 1
    del value
    import gc

    gc.collect()
    assert len(tiny_model.model._forward_hooks) == before


# ------------------------------------------------------------------------------------------------------------ training

ROWS = [
    {"prompt": "the film", "completions": [" was good", " was very bad and dull", " was"], "scores": [2.0, -1.0, 0.5]},
    {"prompt": "a story of music with", "completions": [" great plot", " no plot"], "scores": [1.0, 1.0]},
    {"prompt": "we", "completions": [" loved it so", " hated it", " like"], "scores": [3, 1, 2]},
]
TWO_HEADS = [
    row | {"rewards": {"a": row["scores"], "b": [-float(len(c)) for c in row["completions"]]}} for row in ROWS
]
PROMPT_ROWS = [
    {"prompt": text} for text in ("the film", "a story of music", "we", "I liked the", "no one", "one scene")
]


def trainer(tmp_path: Path, form: str, rows: list[dict], **kwargs: Any) -> VASTrainer:
    settings: dict[str, Any] = {
        "output_dir": str(tmp_path / "out"),
        "value_form": form,
        "action_rank": 3,
        "per_device_train_batch_size": 3,
        "per_device_eval_batch_size": 3,
        "num_epochs_per_batch": 1,
        "learning_rate": 1e-3,
        "gradient_checkpointing": False,
        "report_to": [],
        "disable_tqdm": True,
        "save_strategy": "no",
        "max_completion_length": 5,
        "num_generations": 3,
    }
    settings |= kwargs.pop("args", {})
    if form == "state":
        del settings["action_rank"]
    tokenizer = kwargs.pop("processing_class", None) or make_tokenizer()
    model = kwargs.pop("model", None) or make_model(len(tokenizer))
    if form != "policy" and "value_model" not in kwargs and "peft_config" not in kwargs:
        kwargs["value_model"] = make_model(len(tokenizer), seed=1)
    return VASTrainer(
        model,
        args=VASConfig(**settings),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        **kwargs,
    )


@pytest.mark.parametrize("shared_prefix", ["always", "never"])
@pytest.mark.parametrize("rows", [ROWS, TWO_HEADS], ids=["one head", "two heads"])
@pytest.mark.parametrize("form", FORMS)
def test_loss_and_gradients_equal_the_oracle(tmp_path: Path, form: str, rows: list[dict], shared_prefix: str) -> None:
    run = trainer(tmp_path, form, rows, args={"gamma": 0.9, "lam": 0.8, "shared_prefix": shared_prefix})
    reference = copy.deepcopy(randomize(run.model))
    expected = oracle_loss(reference, run.train_dataset, 0.9, 0.8)
    expected.backward()
    run.model.train()
    loss = run.compute_loss(run.model, run.data_collator([run.train_dataset[i] for i in range(3)]))
    loss.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)
    for (name, mine), theirs in zip(run.model.named_parameters(), reference.parameters(), strict=True):
        if theirs.grad is None:
            assert mine.grad is None, name
        else:
            torch.testing.assert_close(mine.grad, theirs.grad, atol=1e-4, rtol=1e-3, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("form", FORMS)
def test_training_raises_explained_variance_and_does_not_change_the_policy(tmp_path: Path, form: str) -> None:
    rows = rows_scored_by_letters(48)
    policy = make_model(len(make_tokenizer()))
    before = copy.deepcopy(policy.state_dict())
    run = trainer(
        tmp_path, form, rows[:32], model=policy, eval_dataset=Dataset.from_list(rows[32:]),
        args={"num_train_epochs": 15, "learning_rate": 5e-3, "per_device_train_batch_size": 8, "action_rank": 16},
    )  # fmt: skip
    first = run.evaluate()
    run.train()
    last = run.evaluate()
    assert last["eval_explained_variance"] > max(first.get("eval_explained_variance", 0), 0) + 0.3
    assert last["eval_loss"] < 0.6 * first["eval_loss"]
    for name, value in policy.state_dict().items():
        assert torch.equal(value, before[name]), name
    run.save_model(tmp_path / "saved")
    found = ValueModel.from_pretrained(tmp_path / "saved", backbone=policy if form == "policy" else None)
    ids = torch.tensor([[5, 9, 3, 7]])
    torch.testing.assert_close(found(ids).values[:, 1:], run.model.eval()(ids).values[:, 1:])


@pytest.mark.parametrize("form", FORMS)
def test_guidance_raises_the_token_with_a_higher_reward(tmp_path: Path, form: str) -> None:
    """From data to logits: the processor raises the token of the completion with the higher score."""
    rows = [{"prompt": "the film was", "completions": [" good", " bad"], "scores": [1.0, -1.0]}] * 8
    policy, tokenizer = make_model(len(make_tokenizer())), make_tokenizer()
    run = trainer(
        tmp_path, form, rows, model=policy, processing_class=tokenizer,
        args={"num_train_epochs": 20, "learning_rate": 1e-2},
    )  # fmt: skip
    run.train()
    ids = torch.tensor([tokenizer("the film was").input_ids])
    good, bad = (tokenizer(" " + word).input_ids[-1] for word in ("good", "bad"))
    with torch.no_grad():
        scores = policy(ids).logits[:, -1]
    for beta in (2.0, -2.0):
        added = ValueAugmentedLogitsProcessor(run.model.eval(), beta, len(tokenizer))(ids, scores) - scores
        gap = float(added[0, good] - added[0, bad])
        assert gap * math.copysign(1, beta) > 1.0


@pytest.mark.parametrize("form", FORMS)
def test_later_rounds_are_sampled_with_guidance(tmp_path: Path, form: str) -> None:
    rewards: list[float] = []

    class Log(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            rewards.extend([logs["reward"]] if "reward" in logs else [])

    run = trainer(
        tmp_path, form, PROMPT_ROWS * 8, reward_funcs=letter_reward, callbacks=[Log()],
        args={
            "num_iterations": 2, "num_train_epochs": 8, "sampling_beta": 4.0, "learning_rate": 5e-3,
            "per_device_train_batch_size": 8, "num_generations": 4, "action_rank": 16, "logging_steps": 1,
        },
    )  # fmt: skip
    run.train()
    assert rewards[1] > rewards[0] + 0.3


@pytest.mark.parametrize("form", FORMS)
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path, form: str, tiny_model_dir: str) -> None:
    def make(folder: str) -> VASTrainer:
        return trainer(
            tmp_path, form, ROWS * 2, model=tiny_model_dir, processing_class=make_tokenizer(chat=True),
            eval_dataset=Dataset.from_list(ROWS),
            args={
                "output_dir": str(tmp_path / folder), "save_strategy": "steps", "save_steps": 1, "eval_steps": 1,
                "eval_strategy": "steps", "load_best_model_at_end": True, "metric_for_best_model": "loss",
                "num_train_epochs": 2, "num_epochs_per_batch": 2, "learning_rate": 0.02,
            },
        )  # fmt: skip

    whole, resumed = make("whole"), make("resumed")
    whole.train()
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3"))
    for (name, a), b in zip(whole.model.state_dict().items(), resumed.model.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    best = ValueModel.from_pretrained(whole.state.best_model_checkpoint)
    ids = torch.tensor([[5, 9, 3, 7]])
    torch.testing.assert_close(best(ids).values[:, 1:], whole.model.eval()(ids).values[:, 1:])
    further = trainer(
        tmp_path, form, ROWS, model=tiny_model_dir, processing_class=make_tokenizer(chat=True),
        value_model=str(whole.state.best_model_checkpoint),
    )  # fmt: skip
    torch.testing.assert_close(further.model.eval()(ids).values[:, 1:], best(ids).values[:, 1:])
    assert further.model.shares_policy == (form == "policy")
    further.train()
    assert not torch.equal(further.model.head.weight, best.head.weight)


@pytest.mark.parametrize("setting", [{"gradient_checkpointing": True}, {"bf16": True}, {"calibration_rollouts": 2}])
def test_policy_form_with_other_training_settings(tmp_path: Path, setting: dict[str, Any]) -> None:
    policy = make_model(len(make_tokenizer()))
    policy.config.attention_dropout = 0.5
    before = copy.deepcopy(policy.state_dict())
    run = trainer(
        tmp_path, "policy", ROWS, model=policy, reward_funcs=letter_reward, eval_dataset=Dataset.from_list(ROWS),
        args=setting | {"num_train_epochs": 3},
    )  # fmt: skip
    run.train()
    metrics = run.evaluate()
    assert math.isfinite(metrics["eval_loss"])
    assert ("eval_calibration/r2" in metrics) == ("calibration_rollouts" in setting)
    assert run.model.head.weight.abs().sum() > 0
    assert all(torch.equal(value, before[name]) for name, value in policy.state_dict().items())


def test_action_form_with_an_adapter_on_the_policy(tmp_path: Path, tiny_model_dir: str) -> None:
    policy = AutoModelForCausalLM.from_pretrained(tiny_model_dir).eval()
    ids = torch.tensor([[5, 9, 3, 7, 11]])
    logits = policy(ids).logits
    run = trainer(
        tmp_path, "action", ROWS, model=policy, processing_class=make_tokenizer(chat=True),
        peft_config=LoraConfig(**LORA), args={"num_train_epochs": 3, "learning_rate": 0.01},
    )  # fmt: skip
    run.train()
    assert torch.equal(policy(ids).logits, logits)
    guides = [(run.model.eval(), 0, 3.0)]
    with run.model.hold_adapter():
        states = run.model.backbone(input_ids=ids).last_hidden_state
    assert (states - policy.model(input_ids=ids).last_hidden_state).abs().max() > 1e-3
    processor = ValueAugmentedLogitsProcessor(run.model, 3.0, K)
    assert run_generate(policy, processor, PROMPTS, 4) == [greedy(policy, guides, prompt, 4) for prompt in PROMPTS]


def test_four_bits(tmp_path: Path, tiny_model_dir: str) -> None:
    pytest.importorskip("bitsandbytes")
    from transformers import BitsAndBytesConfig

    four = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
    policy = AutoModelForCausalLM.from_pretrained(tiny_model_dir, quantization_config=four)
    for form in FORMS:
        lora = {"peft_config": LoraConfig(**LORA), "value_model": tiny_model_dir} if form == "action" else {}
        run = trainer(
            tmp_path, form, ROWS, model=tiny_model_dir if lora else policy,
            processing_class=make_tokenizer(chat=True), quantization_config=four if lora else None, **lora,
        )  # fmt: skip
        run.train()
        run.save_model(tmp_path / form)
        kwargs = {"backbone": policy} if form == "policy" else {"quantization_config": four}
        value = ValueModel.from_pretrained(tmp_path / form, **kwargs)
        assert value.action.query.weight.dtype == torch.float32 and value.action.query.weight.abs().sum() > 0
        settings = GenerationSettings(num_generations=2, max_completion_length=3)
        guides = [ValueAugmentedLogitsProcessor(value, 3.0, K)]
        sampled = generate(policy, make_tokenizer(chat=True), PROMPTS, settings, processors=lambda *_, g=guides: g)
        assert [len(row) for row in sampled] == [2] * 4


@pytest.mark.parametrize(
    ("form", "kwargs", "words"),
    [
        ("policy", {"value_model": make_model(193)}, ["omit `value_model`", "value_form='action'"]),
        ("policy", {"peft_config": LoraConfig(**LORA)}, ["policy", "takes no adapter", "--use_peft"]),
        ("action", {"value_model": None}, ["no value model", "value_form='policy'"]),
    ],
)
def test_invalid_arguments(tmp_path: Path, form: str, kwargs: dict, words: list[str]) -> None:
    with pytest.raises(ValueError) as caught:
        trainer(tmp_path, form, ROWS, **kwargs)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_form_that_differs_from_the_models_is_rejected(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    value = ValueModel.from_backbone(make_model(len(tokenizer)), form="action")
    with pytest.raises(ValueError, match=r"has the form 'action', but `value_form` is 'state'"):
        trainer(tmp_path, "state", ROWS, value_model=value)
    for changes, word in (
        ({"value_form": "future"}, "value_form"),
        ({"action_rank": 0}, "action_rank"),
        ({"action_rank": 8}, "is that of the forms 'action' and 'policy'"),
    ):
        with pytest.raises(ValueError, match=word):
            VASConfig(str(tmp_path), **changes)


# ------------------------------------------------------------------------------------------------- beside an engine


def test_heads_without_the_language_model(tmp_path: Path) -> None:
    """An engine passes hidden states: the same values as of the complete model, and no weights of a backbone."""
    policy = make_model(64)
    model = make_value("policy", policy, ("a", "b"))
    model.save_pretrained(tmp_path)
    heads = ValueModel.heads_from_pretrained(str(tmp_path))
    hidden, ids = torch.randn(5, 64), torch.randint(64, (5, 7))
    assert torch.equal(heads.action_values(hidden, ids), model.action_values(hidden, ids))
    assert all(parameter.is_meta for parameter in heads.backbone.parameters())
    assert not any(parameter.requires_grad for parameter in heads.parameters())
    make_value("state", policy).save_pretrained(tmp_path / "state")
    with pytest.raises(ValueError, match="has the form 'state', whose backbone is needed"):
        ValueModel.heads_from_pretrained(str(tmp_path / "state"))
