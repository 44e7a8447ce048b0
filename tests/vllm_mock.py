# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""A mock of vLLM's engine and client under TRL's own integration, which runs as it is."""

import sys
from types import SimpleNamespace
from typing import Any

import numpy
import pytest
import torch

from trl_ext import packages
from trl_ext.upstream import vllm_generation


def _completions(count: int) -> list[list[int]]:
    """Random tokens from torch's generator and from numpy's, which vLLM's two runners use."""
    return [
        [*torch.randint(10, 50, (2,)).tolist(), *numpy.random.randint(10, 50, 2).tolist(), 1] for _ in range(count)
    ]


def mock_vllm(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """
    Replace vLLM by a mock, and return the growing list of its calls.

    The list has the settings of the engine or of the client, `"group"` where a client joins the group that weights are
    sent through, `"sync"` for each time that all weights were sent, and the number of prompts with the sampling
    settings for each time that it generates.
    """
    module = sys.modules[vllm_generation().__module__]
    calls: list[Any] = []

    def synced() -> None:
        if calls[-1] == "weights":
            calls[-1] = "sync"

    def weights(sent: Any) -> None:
        if [name for name, *_ in sent] and calls[-1] != "weights":
            calls.append("weights")

    class LLM:
        def __init__(self, **settings: Any) -> None:
            calls.append(settings)
            self.itself = self  # only the collector of cycles frees vLLM
            self.reset_prefix_cache = synced
            runner = SimpleNamespace(model_runner=SimpleNamespace(model=SimpleNamespace(load_weights=weights)))
            self.llm_engine = SimpleNamespace(model_executor=SimpleNamespace(driver_worker=runner))

        def generate(self, prompts: list[dict[str, Any]], *, sampling_params: dict[str, Any], use_tqdm: bool) -> list:
            calls.append((len(prompts), sampling_params))
            return [
                SimpleNamespace(
                    prompt_token_ids=prompt["prompt_token_ids"],
                    outputs=[
                        SimpleNamespace(token_ids=tuple(ids), logprobs=None)
                        for ids in _completions(sampling_params["n"])
                    ],
                )
                for prompt in prompts
            ]

    class Client:
        def __init__(self, base_url: str, **settings: Any) -> None:
            calls.append({"base_url": base_url, **settings})
            self.reset_prefix_cache = synced

        def init_communicator(self, device: Any) -> None:
            calls.append("group")

        def update_named_params(self, metadata: list, sent: Any) -> None:
            weights(sent)

        def generate(self, prompts: list[list[int]], features: None, **sampling: Any) -> dict[str, Any]:
            calls.append((len(prompts), sampling))
            return {
                "prompt_ids": prompts,
                "completion_ids": _completions(len(prompts) * sampling["n"]),
                "logprobs": None,
            }

    for name, mock in {"LLM": LLM, "SamplingParams": dict, "VLLMClient": Client}.items():
        monkeypatch.setattr(module, name, mock, raising=False)
    monkeypatch.setattr(module, "is_vllm_available", lambda: True)
    monkeypatch.setattr(packages, "is_installed", lambda package: True)
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):  # TRL sets them
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    return calls
