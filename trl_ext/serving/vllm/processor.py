# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
Base of the logits processors that vLLM loads, one class for both of its interfaces.

vLLM's first model runner (V1) passes rows of a batch, which it adds, removes and moves; its second (Model Runner V2,
which takes logits processors since vLLM 0.31) passes slots, which stay. Each runner requires a subclass of its own
base class.

Dimensions: D hidden size, V vocabulary.
"""

import importlib
import itertools
import logging
import weakref
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch

from trl_ext.upstream import watch_vllm_hidden_states


logger = logging.getLogger("vllm.trl_ext")  # vLLM shows what its own loggers say

_INTERFACES = ("vllm.v1.sample.logits_processor.interface", "vllm.v1.worker.gpu.sample.logits_processor.interface")


def _bases() -> tuple[type, ...]:
    """The base classes of the interfaces that the installed vLLM has; none without vLLM, as in tests."""
    found = []
    for name in _INTERFACES:
        try:
            found.append(importlib.import_module(name).LogitsProcessor)
        except ImportError:
            continue
    return tuple(found) or (object,)


@dataclass(frozen=True)
class EngineSize:
    """
    What an engine says about its batches.

    Args:
        texts (`int`): Most requests in one batch.
        tokens (`int`): Longest text, completion included.
        vocabulary (`int`): V.
        hidden (`int`): D.
    """

    texts: int
    tokens: int
    vocabulary: int
    hidden: int

    @classmethod
    def of(cls, vllm_config: Any) -> "EngineSize":
        """That of an engine with this `vllm.config.VllmConfig`."""
        return cls(
            texts=vllm_config.scheduler_config.max_num_seqs,
            tokens=vllm_config.model_config.max_model_len,
            vocabulary=vllm_config.model_config.get_vocab_size(),
            hidden=vllm_config.model_config.get_hidden_size(),
        )


@dataclass
class EngineRequest:
    """
    A guided request.

    Args:
        number (`int`): Its number; no two requests have the same.
        settings (`Any`): What it asks for, from [`EngineProcessor.request_settings`].
        prompt (`list[int]`), output (`list[int]`): Its tokens, which V1 passes and keeps up to date.
    """

    number: int
    settings: Any
    prompt: Sequence[int] = ()
    output: Sequence[int] = ()


class GuidedRow(NamedTuple):
    """
    A row of logits that is guided.

    Args:
        place (`int`): Which row.
        request (`Hashable`): Whose it is, different for each request that the engine has ever added.
        length (`int`): Tokens of its text so far.
        settings (`Any`): What its request asks for.
    """

    place: int
    request: Hashable
    length: int
    settings: Any


class Texts(Protocol):
    """The texts of an engine's requests."""

    def last(self, rows: Sequence[GuidedRow]) -> torch.Tensor:
        """Last token of each text, `torch.Tensor` of shape `(N,)`, int64, on the engine's device."""
        ...

    def complete(self, row: GuidedRow) -> list[int]:
        """All tokens of a text."""
        ...


class _RowTexts:
    """Texts as V1 has them: lists of tokens."""

    def __init__(self, requests: dict[int, EngineRequest], device: torch.device) -> None:
        self.requests, self.device = requests, device

    def last(self, rows: Sequence[GuidedRow]) -> torch.Tensor:
        asked = [self.requests[row.place] for row in rows]
        return torch.tensor([(each.output or each.prompt)[-1] for each in asked], device=self.device)

    def complete(self, row: GuidedRow) -> list[int]:
        request = self.requests[row.place]
        return [*request.prompt, *request.output]


class _SlotTexts:
    """Texts as V2 has them: on the device, by slot."""

    def __init__(self, states: Any, slots: Sequence[int]) -> None:
        self.states, self.slots = states, slots

    def last(self, rows: Sequence[GuidedRow]) -> torch.Tensor:
        slots = torch.tensor([self.slots[row.place] for row in rows], device=self.states.device)
        ends = torch.tensor([row.length - 1 for row in rows], device=self.states.device)
        return self.states.all_token_ids.gpu[slots, ends].long()

    def complete(self, row: GuidedRow) -> list[int]:
        found: list[int] = self.states.all_token_ids.gpu[self.slots[row.place], : row.length].tolist()
        return found


class EngineProcessor(*_bases()):  # type: ignore[misc]
    """
    What guides some of an engine's requests. vLLM makes the object.

    A subclass defines [`setup`], [`request_settings`], [`guide`] and, if it keeps something about requests,
    [`release`].

    Args:
        vllm_config (`vllm.config.VllmConfig`): The engine's config.
        where (`torch.device` or `LogitsProcRequestState`): The device (V1), or the engine's requests (V2).
        is_pin_memory (`bool`, *optional*): Of V1's interface; not used.

    Attributes:
        reads_hidden (`bool`): Whether it needs the language model's hidden states.

    Raises:
        `ValueError`: The engine has a feature that guidance cannot work with; and what [`setup`] raises.
    """

    reads_hidden: bool = False

    def __init__(self, vllm_config: Any, where: Any, is_pin_memory: bool | None = None) -> None:
        self.states: Any = where if is_pin_memory is None else None
        self.device: torch.device = where.device if is_pin_memory is None else where
        self.requests: dict[int, EngineRequest] = {}  # by row (V1) or slot (V2)
        self._numbers = itertools.count()
        self._hidden: torch.Tensor | None = None
        _refuse(vllm_config)
        self.setup(vllm_config)
        if self.reads_hidden:
            watch = weakref.WeakMethod(self.see_hidden)  # an engine that has ended is not kept
            watch_vllm_hidden_states(lambda hidden: None if (take := watch()) is None else take(hidden))

    # ------------------------------------------------------------------------------------------ what subclasses define

    def setup(self, vllm_config: Any) -> None:
        """
        Read the settings and load what guides. Sets `reads_hidden`.

        Raises:
            `ValueError` or `OSError`: A setting is wrong, or what guides does not fit the engine.
        """
        raise NotImplementedError

    def request_settings(self, sampling_params: Any) -> Any:
        """
        What a request asks for; `None` if it is not guided.

        Args:
            sampling_params (`vllm.SamplingParams`): The request's settings.

        Raises:
            `ValueError`: They are wrong.
        """
        raise NotImplementedError

    def guide(self, logits_NV: torch.Tensor, rows: Sequence[GuidedRow], texts: Texts) -> None:
        """
        Change the logits of rows in place.

        Args:
            logits_NV (`torch.Tensor` of shape `(rows of the batch, V)`): The language model's logits, float32.
            rows (`Sequence[GuidedRow]`): Rows to guide.
            texts ([`Texts`]): Their texts.
        """
        raise NotImplementedError

    def release(self, request: Hashable) -> None:
        """A request has ended. By default nothing is kept about it."""

    # --------------------------------------------------------------------------------------------------- hidden states

    def see_hidden(self, hidden_ND: torch.Tensor) -> None:
        """The language model is about to compute logits from these hidden states, one row for each of theirs."""
        self._hidden = hidden_ND

    def hidden_of(self, logits_NV: torch.Tensor) -> torch.Tensor | None:
        """
        The hidden states that logits were computed from; `None` if they are not read.

        Raises:
            `RuntimeError`: vLLM computed others.
        """
        if not self.reads_hidden:
            return None
        found = 0 if self._hidden is None else len(self._hidden)
        if found != len(logits_NV):
            raise RuntimeError(
                f"vLLM computed {found} hidden states and passes logits of {len(logits_NV)} rows: this version cannot "
                "be guided by what reads hidden states."
            )
        return self._hidden

    # --------------------------------------------------------------------------------------------------- interface V1

    def is_argmax_invariant(self) -> bool:
        """Guidance changes which token is likeliest."""
        return False

    def update_state(self, batch_update: Any) -> None:
        """Rows that were removed, added and moved since the last step (V1)."""
        if batch_update is None:
            return
        for row in batch_update.removed:
            self._remove(row)
        for row, sampling_params, prompt, output in batch_update.added:
            self._add(row, sampling_params, prompt or (), output)
        for source, target, direction in batch_update.moved:
            moved, other = self.requests.pop(source, None), self.requests.pop(target, None)
            if moved is not None:
                self.requests[target] = moved
            if other is not None and direction.name == "SWAP":
                self.requests[source] = other
            elif other is not None:
                self.release(other.number)

    # --------------------------------------------------------------------------------------------------- interface V2

    def add_request(self, req_idx: int, sampling_params: Any) -> bool:
        """A request takes a slot (V2). Returns whether it is guided."""
        return self._add(req_idx, sampling_params)

    def apply_staged_writes(self) -> None:
        """Has no effect: what requests ask for is passed with each step."""

    # ----------------------------------------------------------------------------------------------------------- both

    def apply(self, logits: torch.Tensor, ctx: Any = None) -> torch.Tensor:
        """
        Guide the rows that ask for it, in place.

        Args:
            logits (`torch.Tensor` of shape `(rows, vocabulary)`): Logits of the batch.
            ctx (`LogitsContext`, *optional*): Layout of the batch (V2).
        """
        if not self.requests:
            return logits
        if ctx is None:
            rows = [
                GuidedRow(index, each.number, len(each.prompt) + len(each.output), each.settings)
                for index, each in sorted(self.requests.items())
            ]
            texts: Any = _RowTexts(self.requests, self.device)
        else:
            rows, texts = self._rows_of_slots(ctx), _SlotTexts(self.states, ctx.idx_mapping_np.tolist())
        if rows:
            self.guide(logits, rows, texts)
        return logits

    def _rows_of_slots(self, ctx: Any) -> list[GuidedRow]:
        rows = []
        for index, slot in enumerate(ctx.idx_mapping_np.tolist()):
            request, length = self.requests.get(slot), int(ctx.seq_lens_upper_bound_np[index])
            # Of a prompt that is read in chunks, the logits count only after the last one.
            if request is not None and length >= int(self.states.prefill_len.np[slot]):
                rows.append(GuidedRow(index, request.number, length, request.settings))
        return rows

    def _add(self, place: int, sampling_params: Any, prompt: Sequence[int] = (), output: Sequence[int] = ()) -> bool:
        self._remove(place)
        try:
            settings = self.request_settings(sampling_params)
        except ValueError as error:  # `validate_params` has refused it, unless it did not know enough
            logger.error("A request is not guided: %s", error)
            return False
        if settings is None:
            return False
        self.requests[place] = EngineRequest(next(self._numbers), settings, prompt, output)
        return True

    def _remove(self, place: int) -> None:
        request = self.requests.pop(place, None)
        if request is not None:
            self.release(request.number)


def _refuse(vllm_config: Any) -> None:
    """Raise `ValueError` for features of an engine that guidance cannot work with."""
    if vllm_config.speculative_config is not None:
        raise ValueError(
            "Guidance inside vLLM does not work with speculative decoding: leave out `--speculative-config`."
        )
    if getattr(vllm_config.parallel_config, "enable_batch_sharded_sampling", False):
        raise ValueError(
            "Guidance inside vLLM needs all rows on every rank: leave out `--enable-batch-sharded-sampling`."
        )
