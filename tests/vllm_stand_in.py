# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""What TRL's class for vLLM is asked for, without vLLM."""

from typing import Any

import pytest


def use_stand_in(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Put something in its place; returns the list of what it was asked for, which grows."""
    calls: list[Any] = []

    class StandIn:
        def __init__(self, **settings: Any) -> None:
            calls.append(settings)

        def sync_weights(self) -> None:
            calls.append("sync")

        def generate(self, prompts: list, images: None, num_generations: int) -> tuple:
            calls.append((len(prompts), num_generations))
            return prompts, [[10 + i % 7, 11, 1] for i in range(len(prompts))], None, None

    monkeypatch.setattr("trl_ext.engines.vllm_generation", lambda: StandIn)
    return calls
