# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""What a published value model carries: `generate(custom_generate=...)` with its code, and a card whose code runs."""

import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make_model, make_tokenizer
from huggingface_hub import ModelCard
from oracles.guided_decoding import make_value
from transformers import LogitsProcessorList

from trl_ext import ValueAugmentedLogitsProcessor, guided_generate
from trl_ext.decoding.token_sampling import SamplingProcessor
from trl_ext.generation.observer import SavedLogprobs
from trl_ext.generation_settings import GenerationSettings
from trl_ext.guides.logits_processor import GuidedLogitsProcessor


COMMON: dict[str, Any] = {"do_sample": False, "max_new_tokens": 6, "pad_token_id": 0}


@pytest.fixture
def inputs() -> dict[str, torch.Tensor]:
    """Two prompts, one of them padded on the left."""
    ids = torch.tensor([[0, 0, 9, 10], [5, 6, 7, 8]])
    return {"input_ids": ids, "attention_mask": (ids != 0).long()}


@pytest.fixture
def model() -> Any:
    return make_model(len(make_tokenizer()))


def published(tmp_path: Path, model: Any, form: str = "state", name: str = "value") -> str:
    make_tokenizer().save_pretrained(tmp_path / name)
    make_value(form, model).save_pretrained(tmp_path / name)
    return str(tmp_path / name)


@pytest.mark.parametrize("form", ["state", "action", "policy"])
def test_generate_of_transformers_uses_the_stored_code(
    tmp_path: Path, model: Any, inputs: dict[str, torch.Tensor], form: str
) -> None:
    """The tokens are those of the processor, for a directory, a loaded value model, and several."""
    path, value = published(tmp_path, model, form), make_value(form, model)
    processor = ValueAugmentedLogitsProcessor(value, 2.0, 20, attention_mask=inputs["attention_mask"])
    expected = model.generate(**inputs, **COMMON, logits_processor=LogitsProcessorList([processor]))
    assert not torch.equal(expected, model.generate(**inputs, **COMMON))
    call = {**inputs, **COMMON, "custom_generate": path, "trust_remote_code": True, "beta": 2.0}
    assert torch.equal(model.generate(**call, value_model=path), expected)
    assert torch.equal(model.generate(**call, value_model=value), expected)
    named = model.generate(**call | {"beta": {"a": 1.5, "b": 0.5}}, value_model={"a": path, "b": value})
    assert torch.equal(named, expected)
    assert torch.equal(guided_generate(model, value_model=path, beta=2.0, **inputs, **COMMON), expected)
    many = model.generate(**call | {"num_return_sequences": 2, "do_sample": True, "top_k": 1}, value_model=path)
    assert torch.equal(many, expected.repeat_interleave(2, 0))  # `top_k` is that of the sampling


def test_settings_reach_the_guide(tmp_path: Path, model: Any, inputs: dict[str, torch.Tensor]) -> None:
    value = make_value("state", model)
    settings: dict[str, Any] = {"guide_every": 2, "guide_when": {"margin": 0.5}}
    processor = ValueAugmentedLogitsProcessor(value, 3.0, 4, attention_mask=inputs["attention_mask"], **settings)
    expected = model.generate(**inputs, **COMMON, logits_processor=LogitsProcessorList([processor]))
    found = guided_generate(model, value_model=value, guide_top_k=4, **settings, **inputs, **COMMON)
    assert torch.equal(found, expected)
    blocked = guided_generate(
        model, value_model=value, logits_processor=LogitsProcessorList([_No(int(expected[0, 4]))]), **inputs, **COMMON
    )
    assert blocked[0, 4] != expected[0, 4]  # the caller's processors come first


class _No:
    def __init__(self, token: int) -> None:
        self.token = token

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return scores.index_fill(1, torch.tensor([self.token]), -torch.inf)


def test_what_is_missing_is_said(
    tmp_path: Path, model: Any, inputs: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = published(tmp_path, model)
    call = {**inputs, **COMMON, "custom_generate": path}
    with pytest.raises(ValueError, match="`value_model` is missing"):
        model.generate(**call, trust_remote_code=True)
    with pytest.raises(ValueError, match="trust_remote_code"):
        model.generate(**call, trust_remote_code=False, value_model=path)
    with pytest.raises(OSError, match="nowhere"):
        model.generate(**call, trust_remote_code=True, value_model=str(tmp_path / "nowhere"))
    monkeypatch.setitem(sys.modules, "trl_ext", None)  # as if it were not installed
    with pytest.raises(ImportError, match="pip install trl-ext"):
        model.generate(**call, trust_remote_code=True, value_model=path)


def test_the_card(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Its code runs; a card that is there is kept."""
    tokenizer = make_tokenizer()
    llm = make_model(len(tokenizer))
    llm.save_pretrained(tmp_path / "llm")
    tokenizer.save_pretrained(tmp_path / "llm")
    path = Path(published(tmp_path, llm))
    card = ModelCard.load(path / "README.md")
    assert set(card.data.tags) == {"custom_generate", "trl-ext", "vas"}
    assert card.data.library_name == "trl-ext"
    [start] = re.findall(r"```python\n(.*?)```", card.text, flags=re.DOTALL)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(start.replace("LANGUAGE_MODEL", "llm"), names)  # what the card says
    assert capsys.readouterr().out.strip()
    assert names["output"].shape[0] == 1
    (path / "README.md").write_text("mine")
    make_value("state", llm).save_pretrained(path)
    assert (path / "README.md").read_text() == "mine"


def test_the_card_of_a_value_model_with_a_prompt_of_its_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its code passes one, by the processor and by the stored code, and runs."""
    tokenizer = make_tokenizer()
    llm, value = make_model(len(tokenizer)), make_value("state", make_model(len(tokenizer)))
    llm.save_pretrained(tmp_path / "llm")
    tokenizer.save_pretrained(tmp_path / "llm")
    value.config.value_prompt = True
    value.save_pretrained(tmp_path / "value")
    [start] = re.findall(r"```python\n(.*?)```", (tmp_path / "value" / "README.md").read_text(), flags=re.DOTALL)
    assert start.count("value_prompts=own_prompts") == 2
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(start.replace("LANGUAGE_MODEL", "llm"), names)
    assert capsys.readouterr().out.strip()
    assert names["output"].shape[0] == 1


def test_prompts_of_the_value_models_own(model: Any, inputs: dict[str, torch.Tensor]) -> None:
    """They reach the guide; without them the error names the argument that is missing."""
    value = make_value("state", model)
    value.config.value_prompt = True
    own = [[5, 6, 7], [11]]
    processor = ValueAugmentedLogitsProcessor(value, 3.0, attention_mask=inputs["attention_mask"], value_prompts=own)
    expected = model.generate(**inputs, **COMMON, logits_processor=LogitsProcessorList([processor]))
    assert torch.equal(guided_generate(model, value_model=value, value_prompts=own, **inputs, **COMMON), expected)
    other = guided_generate(model, value_model=value, value_prompts=[[9, 10], [5, 6, 7, 8]], **inputs, **COMMON)
    assert not torch.equal(other, expected)
    with pytest.raises(ValueError, match="`value_prompts` for value models"):
        guided_generate(model, value_model=value, **inputs, **COMMON)


def test_processors_refuse_continuous_batching() -> None:
    """It would call them with the last tokens alone."""
    for cls in (GuidedLogitsProcessor, ValueAugmentedLogitsProcessor, SamplingProcessor, SavedLogprobs):
        assert cls.supports_continuous_batching is False
    assert SamplingProcessor(GenerationSettings()).supports_continuous_batching is False
