# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
A mock of vLLM's engine: continuous batching of a transformers model, with the interfaces of both model runners.

What a logits processor is passed is made here from a few tensors and lists, as vLLM's interface describes them.
"""

import random
from dataclasses import dataclass, field
from enum import Enum
from types import SimpleNamespace
from typing import Any

import numpy
import pytest
import torch

from trl_ext.serving.vllm import processor as module
from trl_ext.serving.vllm.value_guide import ValueGuide


VERSIONS = ["V1", "V2"]


def engine_config(value_model: Any, policy: Any, *, texts: int = 8, tokens: int = 64, **settings: Any) -> Any:
    """The parts of a `VllmConfig` that guidance by a value model reads; without a tokenizer."""
    return config_with({"value_model": value_model, "top_k": 6, **settings}, policy, texts=texts, tokens=tokens)


def config_with(settings: dict[str, Any], policy: Any, *, texts: int = 8, tokens: int = 64) -> Any:
    """The parts of a `VllmConfig` that guidance reads."""
    return SimpleNamespace(
        additional_config={"trl_ext": settings},
        scheduler_config=SimpleNamespace(max_num_seqs=texts),
        parallel_config=SimpleNamespace(enable_batch_sharded_sampling=None, pipeline_parallel_size=1),
        speculative_config=None,
        model_config=SimpleNamespace(
            model="served",
            hf_text_config=policy.config,
            max_model_len=tokens,
            dtype=torch.float32,
            get_vocab_size=lambda: policy.config.vocab_size,
            get_hidden_size=lambda: policy.config.hidden_size,
            skip_tokenizer_init=True,
            tokenizer="",
            tokenizer_revision=None,
            trust_remote_code=False,
            enable_prompt_embeds=False,
        ),
    )


@dataclass(eq=False)
class Request:
    """A request: its text, how many of it the model has read, and how it ended."""

    prompt: list[int]
    beta: Any = None
    length: int = 8
    output: list[int] = field(default_factory=list)
    logprobs: list[torch.Tensor] = field(default_factory=list)
    read: int = 0
    extra: dict[str, Any] | None = None
    temperature: float = 0.0
    top_k: int = 0

    @property
    def text(self) -> list[int]:
        return self.prompt + self.output

    @property
    def params(self) -> Any:
        extra = self.extra if self.beta is None else {"beta": self.beta}
        return SimpleNamespace(extra_args=extra, temperature=self.temperature, top_k=self.top_k)


class ServedModel:
    """A model as vLLM has it: logits of hidden states, which watchers see, and embeddings of a row of tokens."""

    def __init__(self, policy: Any) -> None:
        self.policy = policy
        self.watchers: list[Any] = []

    def parameters(self) -> Any:
        return self.policy.parameters()

    def compute_logits(self, hidden_ND: torch.Tensor) -> torch.Tensor:
        for watcher in self.watchers:
            watcher(hidden_ND)
        return self.policy.lm_head(hidden_ND).float()

    def embed_input_ids(self, ids_N: torch.Tensor) -> torch.Tensor:
        assert ids_N.ndim == 1
        return self.policy.get_input_embeddings()(ids_N)


class Direction(Enum):
    UNIDIRECTIONAL = 1
    SWAP = 2


class MockEngine:
    """
    An engine of one of the versions.

    Args:
        version (`str`): `"V1"` or `"V2"`.
        policy: The language model. Logits are computed from complete texts, one row at a time.
        config: As from [`engine_config`].
        chunk (`int`): Tokens of a prompt that a step reads.
        kind (`type`): The class of the logits processor.
    """

    def __init__(
        self,
        version: str,
        policy: Any,
        config: Any,
        monkeypatch: pytest.MonkeyPatch,
        chunk: int = 99,
        kind: Any = ValueGuide,
    ) -> None:
        self.version, self.policy, self.chunk = version, policy, chunk
        self.rows: list[Request] = []
        size, tokens = config.scheduler_config.max_num_seqs, config.model_config.max_model_len
        device = torch.device("cpu")
        self.served = ServedModel(policy)
        self.watchers = self.served.watchers
        monkeypatch.setattr(module, "watch_vllm_hidden_states", self.watchers.append)
        if version == "V1":
            self.processor: Any = kind(config, device, False)
        else:
            self.states = SimpleNamespace(
                device=device,
                max_num_reqs=size,
                vocab_size=policy.config.vocab_size,
                all_token_ids=SimpleNamespace(gpu=torch.full((size, tokens), -1, dtype=torch.int32)),
                prefill_len=SimpleNamespace(np=numpy.zeros(size, dtype=numpy.int32)),
            )
            self.processor = kind(config, self.states)
        self.slots: dict[int, Request] = {}  # V2
        self._removed: list[int] = []
        self._added: list[Any] = []
        self._moved: list[Any] = []

    # ------------------------------------------------------------------------------------------------------ requests

    def add(self, request: Request) -> None:
        """A new request, or one that goes on after it was preempted: what the model had read is lost."""
        request.read = 0
        self.rows.append(request)
        if self.version == "V1":
            row = len(self.rows) - 1
            self._added.append((row, request.params, request.prompt, request.output))
            return
        slot = next(slot for slot in reversed(range(self.states.max_num_reqs)) if slot not in self.slots)
        self.slots[slot] = request
        self.states.prefill_len.np[slot] = len(request.text)
        self.states.all_token_ids.gpu[slot] = -1
        self.states.all_token_ids.gpu[slot, : len(request.text)] = torch.tensor(request.text)
        guided = self.processor.add_request(slot, request.params)
        assert guided == bool(self.processor.requests.get(slot))
        self.processor.apply_staged_writes()

    def remove(self, request: Request) -> None:
        """A request has ended, was aborted or preempted. V1 fills its row with the last one."""
        row, last = self.rows.index(request), len(self.rows) - 1
        if self.version == "V2":
            self.rows.remove(request)
            [slot] = [slot for slot, each in self.slots.items() if each is request]
            del self.slots[slot]
            return
        self._flush()  # vLLM collects changes of several rows; here each is passed on alone
        self._removed.append(row)
        if row != last:
            self._moved.append((last, row, Direction.UNIDIRECTIONAL))
            self.rows[row] = self.rows[last]
        self.rows.pop()
        self._flush()

    def swap(self, first: int, second: int) -> None:
        """Two rows change places: V1 says so, V2 orders rows at every step."""
        self._flush()
        self.rows[first], self.rows[second] = self.rows[second], self.rows[first]
        self._moved.append((first, second, Direction.SWAP))
        self._flush()

    def _flush(self) -> None:
        if self.version == "V1":
            changes = SimpleNamespace(removed=self._removed, added=self._added, moved=self._moved)
            self.processor.update_state(changes if any(vars(changes).values()) else None)
            self._removed, self._added, self._moved = [], [], []

    # --------------------------------------------------------------------------------------------------------- steps

    @torch.no_grad()
    def step(self) -> None:
        """One step: a chunk of each prompt, or one more token."""
        self._flush()
        ends = [min(request.read + self.chunk, len(request.text)) for request in self.rows]
        hidden = [
            self.policy.model(torch.tensor([request.text[:end]])).last_hidden_state[0, -1]
            for request, end in zip(self.rows, ends, strict=True)
        ]
        logits_NV = self.served.compute_logits(torch.stack(hidden))
        logits_NV = self.processor.apply(logits_NV, *self._context(ends))
        for row, (request, end) in enumerate(zip(self.rows, ends, strict=True)):
            complete, request.read = end == len(request.text), end
            if complete:
                scaled = logits_NV[row] / (request.temperature or 1.0)
                request.logprobs.append(scaled.log_softmax(-1))
                request.output.append(int(logits_NV[row].argmax()))
                if self.version == "V2":
                    [slot] = [slot for slot, each in self.slots.items() if each is request]
                    self.states.all_token_ids.gpu[slot, len(request.text) - 1] = request.output[-1]
        for request in [each for each in self.rows if len(each.output) == each.length]:
            self.remove(request)

    def _context(self, ends: list[int]) -> list[Any]:
        if self.version == "V1":
            return []
        slots = [next(slot for slot, each in self.slots.items() if each is request) for request in self.rows]
        return [
            SimpleNamespace(
                idx_mapping_np=numpy.array(slots, dtype=numpy.int32),
                seq_lens_upper_bound_np=numpy.array(ends, dtype=numpy.int32),
            )
        ]

    def run(self, requests: list[Request], rng: random.Random | None = None) -> list[list[int]]:
        """
        Complete requests; with a generator, in a random order of additions, moves and preemptions.

        Returns:
            `list[list[int]]`: The completion of each.
        """
        waiting = list(requests)
        while waiting or self.rows:
            while waiting and (rng is None or rng.random() < 0.7) and len(self.rows) < 8:
                self.add(waiting.pop(0))
            if rng is not None and self.rows:
                if rng.random() < 0.3:
                    preempted = rng.choice(self.rows)
                    self.remove(preempted)
                    waiting.insert(0, preempted)
                if len(self.rows) > 1 and rng.random() < 0.5:
                    self.swap(*rng.sample(range(len(self.rows)), 2))
            if self.rows:
                self.step()
        return [request.output for request in requests]
