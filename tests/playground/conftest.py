# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""A running playground over tiny models."""

from collections.abc import Iterator
from typing import Any

import pytest
from conftest import make_model, make_tokenizer


@pytest.fixture(scope="package")
def playground() -> Iterator[Any]:
    """One model, plain and with two value heads."""
    pytest.importorskip("gradio", reason="the extra `playground` is not installed")
    from oracles.guided_decoding import make_value

    from trl_ext.generation_settings import GenerationSettings
    from trl_ext.inference.policy import model_policy
    from trl_ext.methods.vas.policies import guided_policy
    from trl_ext.playground.running import launch
    from trl_ext.serving.models import ServedModels

    tokenizer = make_tokenizer(chat=True)
    model = make_model(len(tokenizer))
    plain = model_policy(model, tokenizer, name="tiny", batch_size=16)
    value = make_value("state", model, heads=("kind", "short"))
    weights = {"kind": 2.0, "short": 1.0}
    guided = guided_policy(model, tokenizer, value, weights, name="v", series="tiny + value")
    settings = GenerationSettings(num_generations=1, max_completion_length=12)
    made = launch(ServedModels(plain, [guided]), defaults=settings, inline=False)
    yield made
    made.close()
