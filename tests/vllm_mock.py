# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""What TRL asks of vLLM, without vLLM: TRL's own code between us and it runs."""

import sys
from types import SimpleNamespace
from typing import Any

import numpy
import pytest
import torch

from trl_ext.upstream import vllm_generation


def _answers(count: int) -> list[list[int]]:
    """By torch's generator and by numpy's, as vLLM's two runners draw."""
    return [
        [*torch.randint(10, 50, (2,)).tolist(), *numpy.random.randint(10, 50, 2).tolist(), 1] for _ in range(count)
    ]


def mock_vllm(monkeypatch: pytest.MonkeyPatch, served: str = "a model") -> list[Any]:
    """
    Put something in its place, where servers have the model `served`.

    Returns the list of what it was asked for, which grows: the settings of the engine or of the client, `"group"` for
    a client that joins the server's for sending weights, `"sync"` for each time that all weights were sent, and the
    number of prompts with the sampling settings.
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
                        SimpleNamespace(token_ids=tuple(ids), logprobs=None) for ids in _answers(sampling_params["n"])
                    ],
                )
                for prompt in prompts
            ]

    class Client:
        def __init__(self, base_url: str, **settings: Any) -> None:
            calls.append({"base_url": base_url, **settings})
            self.model = served
            self.reset_prefix_cache = synced

        def init_communicator(self, device: Any) -> None:
            calls.append("group")

        def update_named_params(self, metadata: list, sent: Any) -> None:
            weights(sent)

        def generate(self, prompts: list[list[int]], features: None, **sampling: Any) -> dict[str, Any]:
            calls.append((len(prompts), sampling))
            return {
                "prompt_ids": prompts,
                "completion_ids": _answers(len(prompts) * sampling["n"]),
                "logprobs": None,
            }

    for name, stand_in in {"LLM": LLM, "SamplingParams": dict, "VLLMClient": Client}.items():
        monkeypatch.setattr(module, name, stand_in, raising=False)
    monkeypatch.setattr(module, "is_vllm_available", lambda: True)
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):  # TRL sets them
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    return calls
