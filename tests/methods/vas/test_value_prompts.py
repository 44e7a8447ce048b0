# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Value models that read a prompt of their own, `value_prompt`: training as on that prompt, guidance with it."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import letter_reward, make_model, make_tokenizer
from datasets import Dataset
from oracles.guided_decoding import PROMPTS, K, make_value, state_value

from trl_ext import ValueModel, VASConfig, VASTrainer
from trl_ext.cli.main import main
from trl_ext.data.schema import DataError
from trl_ext.data.tokenization import encode_prompt, left_padded
from trl_ext.endpoint.client import Endpoint
from trl_ext.generation_settings import GenerationSettings
from trl_ext.methods.vas.calibration import HalfCompletion
from trl_ext.methods.vas.decoding.endpoint_guide import EndpointGuide
from trl_ext.methods.vas.decoding.logits_processor import ValueAugmentedLogitsProcessor
from trl_ext.methods.vas.decoding.value_guide import ValueGuide
from trl_ext.methods.vas.policies import guided_policy


OWN = [[30, 31, 32, 33, 34], [35, 36], [37], [38, 39, 40]]  # what the value model reads for the prompts
TEXTS = ["the film was", "we", "a story of"]
VALUE_TEXTS = ["good the film was", "great music we", "no a story of"]
ROWS = [{"prompt": prompt, "completions": [" good actor", " bad"], "scores": [2.0, -1.0]} for prompt in TEXTS]


def own_value(policy: Any, form: str = "state") -> ValueModel:
    model = make_value(form, policy)
    model.config.value_prompt = True
    return model


@torch.no_grad()
def oracle(policy: Any, value: ValueModel, beta: float, prompt: list[int], own: list[int], done: list[int]) -> Any:
    """Logits of the next token: the language model reads its prompt, the value model its own, by loops."""
    logits = policy(torch.tensor([[*prompt, *done]])).logits[0, -1].clone()
    candidates = logits.topk(K).indices.tolist()
    values = [state_value(value, [*own, *done, token]) for token in candidates]
    guided = logits.clone()
    for token, found in zip(candidates, values, strict=True):
        guided[token] += beta * (found - sum(values) / K)
    return guided


# --------------------------------------------------------------------------------------------------------- guidance


@pytest.mark.parametrize("every", [1, 2])
def test_logits_equal_the_oracle_for_ragged_prompts(tiny_model: Any, every: int) -> None:
    value = own_value(tiny_model)
    ids, mask = left_padded(PROMPTS, 0)
    width = ids.shape[1]
    processor = ValueAugmentedLogitsProcessor(
        value, 2.0, K, attention_mask=mask, value_prompts=OWN, pad_token_id=0, guide_every=every
    )
    for step in range(5):
        with torch.no_grad():
            positions = (mask.cumsum(1) - 1).clamp(min=0)
            logits = tiny_model(ids, attention_mask=mask, position_ids=positions).logits[:, -1]
        found = processor(ids, logits)
        for row, (prompt, own) in enumerate(zip(PROMPTS, OWN, strict=True)):
            beta = 2.0 if step % every == 0 else 0.0
            expected = oracle(tiny_model, value, beta, prompt, own, ids[row, width:].tolist())
            assert torch.allclose(found[row], expected, atol=1e-4)
        chosen = found.argmax(1, keepdim=True)
        ids, mask = torch.cat([ids, chosen], 1), torch.cat([mask, torch.ones_like(chosen)], 1)


def test_several_sequences_of_a_prompt_read_its_value_prompt(tiny_model: Any) -> None:
    value = own_value(tiny_model)
    ids, mask = left_padded(PROMPTS[:2], 0)
    processor = ValueAugmentedLogitsProcessor(value, 2.0, K, attention_mask=mask, value_prompts=OWN[:2])
    twice = ids.repeat_interleave(2, 0)
    with torch.no_grad():
        positions = (mask.cumsum(1) - 1).clamp(min=0).repeat_interleave(2, 0)
        logits = tiny_model(twice, attention_mask=mask.repeat_interleave(2, 0), position_ids=positions).logits[:, -1]
    found = processor(twice, logits)
    for row in range(4):
        expected = oracle(tiny_model, value, 2.0, PROMPTS[row // 2], OWN[row // 2], [])
        assert torch.allclose(found[row], expected, atol=1e-4)


def test_it_stands_beside_a_value_model_that_reads_the_prompt(tiny_model: Any) -> None:
    own, plain = own_value(tiny_model), make_value("state", tiny_model, seed=3)
    ids, mask = left_padded(PROMPTS[:1], 0)
    logits = tiny_model(ids).logits[:, -1].detach()
    both = ValueAugmentedLogitsProcessor(
        {"own": own, "plain": plain}, {"own": 2.0, "plain": -1.0}, K, attention_mask=mask, value_prompts=OWN[:1]
    )
    added = both(ids, logits) - logits
    first = oracle(tiny_model, own, 2.0, PROMPTS[0], OWN[0], []) - logits[0]
    second = oracle(tiny_model, plain, -1.0, PROMPTS[0], PROMPTS[0], []) - logits[0]
    assert torch.allclose(added[0], first + second, atol=1e-4)


def test_a_value_prompt_that_is_the_prompt_changes_nothing(tiny_model: Any) -> None:
    """Also for a policy: generation, and the log-probabilities of the KL."""
    tokenizer = make_tokenizer()
    plain, own = make_value("state", tiny_model), own_value(tiny_model)
    rows = [{"prompt": text, "value_prompt": text} for text in TEXTS]
    settings = GenerationSettings(max_completion_length=6, num_generations=1, temperature=0)
    expected = guided_policy(tiny_model, tokenizer, plain, 2.0, K)
    found = guided_policy(tiny_model, tokenizer, own, 2.0, K)
    prompts = expected.encode_rows(rows)
    assert found.encode_rows(rows) == prompts
    completions = [[c.ids for c in group] for group in expected.generate(prompts, settings)]
    assert [[c.ids for c in group] for group in found.generate(prompts, settings)] == completions
    assert expected.logps is not None and found.logps is not None
    for one, other in zip(expected.logps(prompts, completions), found.logps(prompts, completions), strict=True):
        assert torch.allclose(one[0], other[0], atol=1e-5)
    other_rows = [row | {"value_prompt": f"bad music {row['prompt']}"} for row in rows]
    again = guided_policy(tiny_model, tokenizer, own, 2.0, K)
    again.encode_rows(other_rows)
    assert again.logps is not None
    changed = again.logps(prompts, completions)
    assert not torch.allclose(changed[0][0], expected.logps(prompts, completions)[0][0], atol=1e-3)


def test_what_has_no_value_prompt_is_refused(tiny_model: Any) -> None:
    tokenizer, own = make_tokenizer(), own_value(tiny_model)
    ids, mask = left_padded(PROMPTS[:2], 0)
    with pytest.raises(ValueError, match="reads a prompt of its own"):
        ValueAugmentedLogitsProcessor(own, 2.0, K)
    with pytest.raises(ValueError, match="would have no effect"):
        ValueAugmentedLogitsProcessor(make_value("state", tiny_model), 2.0, K, value_prompts=OWN[:2])
    with pytest.raises(ValueError, match="a row for each"):
        ValueAugmentedLogitsProcessor(own, 2.0, K, attention_mask=mask, value_prompts=OWN)
    processor = ValueAugmentedLogitsProcessor(own, 2.0, K, attention_mask=mask, value_prompts=OWN[:2])
    logits = torch.randn(2, tiny_model.config.vocab_size)
    processor(ids, logits)
    with pytest.raises(ValueError, match="for each batch of prompts"):
        processor(ids + 1, logits)
    policy = guided_policy(tiny_model, tokenizer, own, 2.0, K)
    with pytest.raises(DataError, match=r"Row 1.*has no `value_prompt`"):
        policy.encode_rows([{"prompt": "we", "value_prompt": "a we"}, {"prompt": "no"}])
    with pytest.raises(DataError, match="same prompt with another"):
        policy.encode_rows([{"prompt": "we", "value_prompt": "we"}])
    with pytest.raises(DataError, match="a prompt alone"):
        policy.encode("we")
    with pytest.raises(ValueError, match="requests do not have"):
        ValueGuide(own).slot_scorer(2, 16)
    with pytest.raises(ValueError, match="prompts for a server do not have"):
        EndpointGuide(Endpoint("http://127.0.0.1:1/v1", "m"), own, 2.0, tokenizer)


# --------------------------------------------------------------------------------------------------------- training


def config(folder: Path, **changes: Any) -> VASConfig:
    settings = {"output_dir": str(folder), "per_device_train_batch_size": 3, "num_epochs_per_batch": 1, "seed": 5}
    settings |= {"num_train_epochs": 1, "learning_rate": 1e-2, "report_to": [], "save_strategy": "no"}
    settings |= {"max_completion_length": 5, "num_generations": 2, "gradient_checkpointing": False}
    return VASConfig(**settings | changes)


def trained(folder: Path, rows: list[dict], evals: list[dict] | None = None, **kwargs: Any) -> VASTrainer:
    tokenizer = make_tokenizer()
    value = make_value(kwargs.pop("form", "state"), make_model(len(tokenizer)))
    return VASTrainer(
        make_model(len(tokenizer)),
        kwargs.pop("reward_funcs", None),
        args=config(folder, **kwargs),
        train_dataset=Dataset.from_list(rows),
        eval_dataset=Dataset.from_list(evals) if evals else None,
        processing_class=tokenizer,
        value_model=value,
    )


def with_value_prompts(rows: list[dict]) -> list[dict]:
    return [row | {"value_prompt": text} for row, text in zip(rows, VALUE_TEXTS, strict=True)]


def test_training_is_that_on_the_value_prompt(tmp_path: Path) -> None:
    """Weights after a training with the column are those of a training whose prompts are the value prompts."""
    own = trained(tmp_path / "own", with_value_prompts(ROWS))
    as_prompt = trained(tmp_path / "plain", [r | {"prompt": t} for r, t in zip(ROWS, VALUE_TEXTS, strict=True)])
    own.train()
    as_prompt.train()
    for (name, one), other in zip(own.model.named_parameters(), as_prompt.model.parameters(), strict=True):
        assert torch.equal(one, other), name
    own.save_model(str(tmp_path / "saved"))
    assert ValueModel.load_config(str(tmp_path / "saved")).value_prompt
    assert not as_prompt.model.config.value_prompt


def test_sampling_is_from_the_plain_prompt_and_guided_with_the_other(tmp_path: Path, monkeypatch: Any) -> None:
    seen: list[Any] = []
    made = ValueAugmentedLogitsProcessor.__init__

    def spied(self: Any, *args: Any, **kwargs: Any) -> None:
        seen.append((kwargs["attention_mask"], kwargs["value_prompts"]))
        made(self, *args, **kwargs)

    monkeypatch.setattr(ValueAugmentedLogitsProcessor, "__init__", spied)
    rows = with_value_prompts([{"prompt": text} for text in TEXTS])
    settings = {"num_iterations": 2, "num_train_epochs": 2, "sampling_beta": 2.0}
    run = trained(tmp_path, rows, reward_funcs=letter_reward, **settings)
    run.train()
    tokenizer = run._tokenizer
    prompts = {tuple(encode_prompt(tokenizer, text)) for text in VALUE_TEXTS}
    assert {tuple(ids) for _, given in seen for ids in given} == prompts
    lengths = {int(n) for mask, _ in seen for n in mask.sum(1)}
    assert lengths == {len(encode_prompt(tokenizer, text)) for text in TEXTS}


def test_calibration_reads_the_value_prompt(tmp_path: Path) -> None:
    """The value of half a completion, by one forward pass over the value prompt and this half."""
    run = trained(tmp_path, with_value_prompts(ROWS))
    rows = list(run.train_dataset)
    halves = [HalfCompletion(row, row["completion_ids"][0][:1]) for row in rows]
    run.model.eval()
    found = run._values_at(halves)
    for row, half, value in zip(rows, halves, found[:, 0].tolist(), strict=True):
        assert value == pytest.approx(
            state_value(run.model, [*row["value_prompt_ids"], *half.completion_ids]), abs=1e-4
        )


def test_completions_are_cut_behind_the_longer_prompt(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    rows = [{"prompt": "we", "value_prompt": "no one liked", "completions": [" the film was"], "scores": [1.0]}]
    run = trained(tmp_path, rows, max_length=5)
    [row] = run.train_dataset
    assert len(row["value_prompt_ids"]) == 3 and len(row["completion_ids"][0]) == 2
    assert tokenizer.decode(row["completion_ids"][0]).strip() == "the film"
    with pytest.raises(DataError, match="fills max_length=3"):
        trained(tmp_path, rows, max_length=3)


@pytest.mark.parametrize(
    ("rows", "settings", "message"),
    [
        (with_value_prompts(ROWS), {"form": "policy", "value_form": "policy"}, "hidden states, not the column"),
        (with_value_prompts(ROWS), {"evals": ROWS}, "the eval dataset has none"),
        (ROWS, {"evals": with_value_prompts(ROWS)}, "the train dataset has none"),
        ([*with_value_prompts(ROWS)[:2], ROWS[2] | {"value_prompt": ""}], {}, r"Row 2 .*has no `value_prompt`"),
        ([r | {"value_prompt": "no " * 300} for r in ROWS], {}, "the context length is"),
    ],
)
def test_errors_say_what_to_do(tmp_path: Path, rows: list[dict], settings: dict, message: str) -> None:
    with pytest.raises((DataError, ValueError), match=message):
        trained(tmp_path, rows, max_length=0, **settings)


# --------------------------------------------------------------------------------------------------- the command line


def test_commands_read_the_column(tmp_path: Path, tiny_model_dir: str, capsys: Any) -> None:
    tokenizer = make_tokenizer()
    own_value(make_model(len(tokenizer))).save_pretrained(tmp_path / "value")
    rows = with_value_prompts([{"prompt": text} for text in TEXTS])
    for name, texts in (("own", VALUE_TEXTS), ("same", TEXTS)):
        lines = [json.dumps(row | {"value_prompt": text}) for row, text in zip(rows, texts, strict=True)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
        flags = ["--model_name_or_path", tiny_model_dir, "--value_model_name_or_path", str(tmp_path / "value")]
        flags += ["--dataset_name", str(tmp_path / f"{name}.jsonl"), "--beta", "8", "--max_completion_length", "6"]
        flags += ["--reward_funcs", "tiny_trainers.letter_reward", "--output_file", str(tmp_path / f"{name}.json")]
        assert main(["evaluate", *flags]) == 0
    reports = [json.loads((tmp_path / f"{name}.json").read_text())["models"][-1] for name in ("own", "same")]
    assert all(report["kl"] > 0 for report in reports) and reports[0]["kl"] != reports[1]["kl"]
    (tmp_path / "none.jsonl").write_text(json.dumps({"prompt": "we"}))
    flags[5] = str(tmp_path / "none.jsonl")
    assert main(["evaluate", *flags[:-1], str(tmp_path / "none.json")]) != 0
    assert "has no `value_prompt`" in capsys.readouterr().err
