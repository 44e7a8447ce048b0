# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0
"""Guidance in the loop of fixed shapes against guidance in transformers' own loop."""

from typing import Any

import pytest
import torch
from conftest import make_model

from trl_ext import ValueAugmentedLogitsProcessor, ValueModel
from trl_ext.generation_settings import GenerationSettings
from trl_ext.replay import loops_of
from trl_ext.sampling import generate
from trl_ext.static_generate import Unavailable, static_generate
from trl_ext.vas.decoding import guided_policy


VOCABULARY = 60
IDS = torch.tensor([[0, 0, 5, 6, 7], [8, 9, 10, 11, 12], [0, 0, 0, 0, 13]])
MASK = (IDS != 0).long()


def value_model(form: str = "state", heads: tuple[str, ...] = ("reward",), seed: int = 1, policy: Any = None) -> Any:
    """A value model whose head says something."""
    if form == "policy":
        made = ValueModel.on_policy(policy, heads, form=form).eval()
    else:
        made = ValueModel.from_backbone(make_model(VOCABULARY, seed=seed), heads, form=form).eval()
    generator = torch.Generator().manual_seed(seed)
    for parameter in (*made.head.parameters(), *(made.action.parameters() if form != "state" else ())):
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator) / parameter.shape[-1] ** 0.5)
    return made


@pytest.fixture
def policy() -> Any:
    return make_model(VOCABULARY, initializer_range=0.3)


def tokens(policy: Any, values: Any, beta: Any, static: bool, **kwargs: Any) -> torch.Tensor:
    guide = ValueAugmentedLogitsProcessor(values, beta, 7, attention_mask=MASK)
    extra = {"custom_generate": static_generate} if static else {}
    return policy.generate(
        IDS, attention_mask=MASK, max_new_tokens=20, do_sample=False, logits_processor=[guide], **extra, **kwargs
    )


@pytest.mark.parametrize("form", ["state", "action", "policy"])
def test_every_form_chooses_the_same_tokens(policy: Any, form: str) -> None:
    values = value_model(form, policy=policy)
    unguided = policy.generate(IDS, attention_mask=MASK, max_new_tokens=20, do_sample=False)
    expected = tokens(policy, values, 3.0, static=False)
    assert not torch.equal(expected, unguided)
    for _ in range(2):  # a loop that is used again
        assert torch.equal(tokens(policy, values, 3.0, static=True), expected)


def test_weights_are_those_of_the_call(policy: Any) -> None:
    """One loop for all: heads, models, weights a row, and weights that change between calls."""
    two = value_model(heads=("a", "b"))
    values = {"x": two, "y": value_model("action", seed=2)}
    different = set()
    for beta in ({"a": 2.0, "b": -1.0}, {"y": 3.0}, [{"a": 2.0}, {"b": 1.0}, {}], {"a": -4.0}):
        expected = tokens(policy, values, beta, static=False)
        assert torch.equal(tokens(policy, values, beta, static=True), expected)
        different.add(str(expected.tolist()))
    assert len(different) == 4 and len(loops_of(policy)._loops) == 1


def test_an_adapter_on_the_policy_itself(policy: Any) -> None:
    from peft import LoraConfig

    lora = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    values = ValueModel.on_policy(policy, peft_config=lora).eval()
    values.head.weight.data.normal_(generator=torch.Generator().manual_seed(0))
    expected = tokens(policy, values, 3.0, static=False)
    assert torch.equal(tokens(policy, values, 3.0, static=True), expected)


def test_a_value_model_that_was_trained_further(policy: Any) -> None:
    values = value_model()
    tokens(policy, values, 3.0, static=True)
    values.head.weight.data.mul_(-1)
    expected = tokens(policy, values, 3.0, static=False)
    assert torch.equal(tokens(policy, values, 3.0, static=True), expected)


def test_another_value_model_has_a_loop_of_its_own(policy: Any) -> None:
    for seed in (1, 2, 3):
        values = value_model(seed=seed)
        expected = tokens(policy, values, 3.0, static=False)
        assert torch.equal(tokens(policy, values, 3.0, static=True), expected)


def test_policies_of_the_commands_draw_the_same(policy: Any, tiny_tokenizer: Any) -> None:
    model, values = make_model(len(tiny_tokenizer)), None
    values = ValueModel.from_backbone(make_model(len(tiny_tokenizer), seed=1)).eval()
    values.head.weight.data.normal_(generator=torch.Generator().manual_seed(0))
    guided = guided_policy(model, tiny_tokenizer, values, 2.0, 10)
    found = []
    for wanted in ("never", "always"):
        torch.manual_seed(0)
        settings = GenerationSettings(num_generations=2, max_completion_length=12, cuda_graphs=wanted)
        found.append([[c.ids for c in group] for group in guided.generate([[5, 6], [7], [8, 9, 10]], settings)])
    assert found[0] == found[1]
    torch.manual_seed(0)
    plain = generate(model, tiny_tokenizer, [[5, 6], [7], [8, 9, 10]], settings)
    assert found[1] != [[c.ids for c in group] for group in plain]


def test_what_cannot_be_guided_there_is_said(policy: Any) -> None:
    class Other(ValueAugmentedLogitsProcessor):
        pass

    guide = Other(value_model(), 1.0, 5)
    with pytest.raises(Unavailable, match="Other may do something else"):
        policy.generate(IDS, attention_mask=MASK, max_new_tokens=2, logits_processor=[guide],
                        custom_generate=static_generate)  # fmt: skip
    with pytest.raises(ValueError, match="`top_k` is 99, but the vocabulary has only 60"):
        guide = ValueAugmentedLogitsProcessor(value_model(), 1.0, 99)
        policy.generate(IDS, attention_mask=MASK, max_new_tokens=2, logits_processor=[guide],
                        custom_generate=static_generate)  # fmt: skip


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("form", ["state", "action", "policy"])
def test_a_graph_chooses_the_same_tokens(form: str) -> None:
    policy = make_model(VOCABULARY, initializer_range=0.3).cuda()
    values = value_model(form, policy=policy).cuda()
    guide = ValueAugmentedLogitsProcessor(values, 3.0, 7, attention_mask=MASK.cuda())
    kwargs = {"attention_mask": MASK.cuda(), "max_new_tokens": 20, "do_sample": False, "logits_processor": [guide]}
    expected = policy.generate(IDS.cuda(), **kwargs)
    assert torch.equal(policy.generate(IDS.cuda(), **kwargs, custom_generate=static_generate), expected)
