# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Memory that a loop of calls keeps: after the first calls, none of them leaves a tensor behind."""

import gc
from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import make_model, make_tokenizer
from peft import LoraConfig
from scripted_server import ModelServer, ScriptedServer

from trl_ext import ProxyModel, ValueAugmentedLogitsProcessor, ValueModel, best_of_n
from trl_ext.endpoint.client import Endpoint
from trl_ext.evaluation.evaluate import evaluate_model
from trl_ext.generation_settings import GenerationSettings
from trl_ext.inference.policy import Policy, model_policy
from trl_ext.methods.proxy_rlhf.policies import proxy_policy
from trl_ext.methods.vas.decoding.endpoint_guide import EndpointGuide
from trl_ext.methods.vas.policies import guided_policy
from trl_ext.rewards.functions import load_rewards


PROMPTS, COMPLETIONS = [[5, 6, 7, 8], [9, 10, 11]], [[[3, 4]], [[5, 6, 7]]]
TWO = GenerationSettings(num_generations=2, max_completion_length=4)
ONE = GenerationSettings(num_generations=1, max_completion_length=4)


def length(completions: list[str], **_: Any) -> list[float]:
    return [float(len(text)) for text in completions]


def use(policy: Policy) -> Callable[[], Any]:
    def run() -> None:
        policy.generate(PROMPTS, TWO)
        policy.logps(PROMPTS, COMPLETIONS)  # type: ignore[misc]
        policy.stream(PROMPTS[0], ONE, lambda _: None)  # type: ignore[misc]

    return run


def guided(form: str) -> Callable[[], Any]:
    tokenizer = make_tokenizer()
    model = make_model(len(tokenizer))
    if form == "policy":
        value_model = ValueModel.on_policy(model, form="policy")
    elif form == "adapter":
        value_model = ValueModel.on_policy(model, peft_config=LoraConfig(r=4, target_modules=["q_proj"]))
    else:
        value_model = ValueModel.from_backbone(make_model(len(tokenizer), seed=1), form=form)
    return use(guided_policy(model, tokenizer, value_model.eval(), 1.0))


def one_guide() -> Callable[[], Any]:
    tokenizer = make_tokenizer()
    model = make_model(len(tokenizer))
    value_model = ValueModel.from_backbone(make_model(len(tokenizer), seed=1)).eval()
    guide: Any = ValueAugmentedLogitsProcessor(value_model, 1.0, 5, tokenizer=tokenizer)
    ids = torch.tensor([PROMPTS[0]])
    return lambda: model.generate(ids, logits_processor=[guide], max_new_tokens=4, pad_token_id=0)


def proxy() -> Callable[[], Any]:
    tokenizer = make_tokenizer()
    model = make_model(len(tokenizer))
    return use(proxy_policy(model, tokenizer, ProxyModel.for_model(model).eval()))


def plain() -> Callable[[], Any]:
    tokenizer = make_tokenizer()
    return use(model_policy(make_model(len(tokenizer)), tokenizer))


def best() -> Callable[[], Any]:
    tokenizer = make_tokenizer()
    model = make_model(len(tokenizer))
    return lambda: best_of_n(model, ["the film"], length, 2, processing_class=tokenizer, settings=TWO)


def evaluation() -> Callable[[], Any]:
    tokenizer, rewards = make_tokenizer(), load_rewards([length])
    models = make_model(len(tokenizer)), make_model(len(tokenizer), seed=1)
    return lambda: evaluate_model(
        models[0], tokenizer, [{"prompt": "the film"}], rewards, settings=TWO, base_model=models[1]
    )


def new_models() -> Callable[[], Any]:
    """Models that are made, used and dropped."""
    tokenizer = make_tokenizer()
    return lambda: use(model_policy(make_model(len(tokenizer)), tokenizer))()


def tensors() -> tuple[int, int]:
    """Number of tensors, and their size in bytes."""
    gc.collect()
    found = [each for each in gc.get_objects() if isinstance(each, torch.Tensor)]
    return len(found), sum(each.numel() * each.element_size() for each in found)


@pytest.mark.parametrize(
    "make",
    [
        plain,
        lambda: guided("state"),
        lambda: guided("action"),
        lambda: guided("policy"),
        lambda: guided("adapter"),
        one_guide,
        proxy,
        best,
        evaluation,
        new_models,
    ],
    ids=[
        "plain",
        "state",
        "action",
        "policy",
        "adapter",
        "one guide",
        "proxy",
        "best of n",
        "evaluation",
        "new models",
    ],
)
def test_a_loop_keeps_no_tensors(make: Callable[[], Callable[[], Any]]) -> None:
    run = make()
    for _ in range(3):
        run()
    before = tensors()
    for _ in range(6):
        run()
    assert tensors() == before


def test_a_guided_server_keeps_no_tensors() -> None:
    tokenizer = make_tokenizer()
    server = ScriptedServer(ModelServer(make_model(len(tokenizer)), tokenizer, "ids"))
    value_model = ValueModel.from_backbone(make_model(len(tokenizer), seed=1)).eval()
    try:
        guide = EndpointGuide(Endpoint(server.url, "m"), value_model, 1.0, tokenizer, top_k=8)
        for _ in range(3):
            guide.answer("the film", ONE)
        before = tensors()
        for _ in range(6):
            guide.answer("the film", ONE)
        assert tensors() == before
    finally:
        server.close()
