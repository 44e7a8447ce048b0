# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
The logits processor that vLLM loads, one class for both of its interfaces.

vLLM's first model runner (V1) passes rows of a batch, which it adds, removes and moves; its second (Model Runner V2,
which takes logits processors since vLLM 0.31) passes slots, which stay. Each runner requires a subclass of its own
base class.
"""

import importlib
import itertools
import logging
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from trl_ext.devices import fast_dtype
from trl_ext.models.tokenizers import load_tokenizer
from trl_ext.upstream import vllm_config_of_caller, watch_vllm_hidden_states

from .guided_batch import GIB, EngineSize, GuidedBatch, GuidedRow
from .settings import given_weight, heads_of_config, read_settings, request_weights


logger = logging.getLogger("vllm.trl_ext")

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


@dataclass
class _Request:
    """
    A guided request.

    Args:
        number (`int`): Its number; no two requests have the same.
        weights (`tuple[float, ...]`): A weight for each head.
        prompt (`list[int]`), output (`list[int]`): Its tokens, which V1 passes and keeps up to date.
    """

    number: int
    weights: tuple[float, ...]
    prompt: Sequence[int] = ()
    output: Sequence[int] = ()


class _RowTexts:
    """Texts as V1 has them: lists of tokens."""

    def __init__(self, requests: dict[int, _Request], device: torch.device) -> None:
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


class ValueGuide(*_bases()):  # type: ignore[misc]
    """
    Guides the models that vLLM serves by value models.

    Give it to vLLM by name, and its settings in `additional_config`:

        vllm serve MODEL --logits-processors trl_ext.vllm:ValueGuide \
            --additional-config '{"trl_ext": {"value_model": "outputs/value", "top_k": 20}}'

    A request is guided if it has a weight: `"vllm_xargs": {"beta": 2.0}` over HTTP,
    `SamplingParams(extra_args={"beta": 2.0})` in Python; `"helpful=1,concise=0.5"` for several heads. Requests without
    one, or with 0, cost nothing, in the same batch too.

    vLLM makes the object. Its settings are those of [`~trl_ext.serving.vllm.settings.ServingSettings`].

    Args:
        vllm_config (`vllm.config.VllmConfig`): The engine's config.
        where (`torch.device` or `LogitsProcRequestState`): The device (V1), or the engine's requests (V2).
        is_pin_memory (`bool`, *optional*): Of V1's interface; not used.

    Raises:
        `ValueError`: A setting is wrong, a value model does not fit the model or the engine, or the engine has a
            feature that guidance cannot work with.
        `OSError`: There is no such value model.
    """

    def __init__(self, vllm_config: Any, where: Any, is_pin_memory: bool | None = None) -> None:
        settings = read_settings(vllm_config.additional_config)
        self.states: Any = where if is_pin_memory is None else None
        self.device = where.device if is_pin_memory is None else where
        _refuse(vllm_config)
        size = EngineSize(
            texts=vllm_config.scheduler_config.max_num_seqs,
            tokens=vllm_config.model_config.max_model_len,
            vocabulary=vllm_config.model_config.get_vocab_size(),
            hidden=vllm_config.model_config.get_hidden_size(),
        )
        dtype = fast_dtype(vllm_config.model_config.dtype, self.device)
        tokenizer = _tokenizer(vllm_config.model_config)
        guides = {
            name: kind.load_beside_engine(tokenizer, name, dtype, self.device) for name, kind in settings.kinds.items()
        }
        for guide in guides.values():
            if tokenizer is None and guide.vocabulary != size.vocabulary:
                raise ValueError(
                    f"The model has {size.vocabulary} tokens and the {guide.who} {guide.vocabulary}. Whether they are "
                    "the same can be compared only with the model's tokenizer: start vLLM without "
                    "`--skip-tokenizer-init`."
                )
        self.batch = GuidedBatch(guides, settings.top_k, size, int(settings.value_cache_gib * GIB))
        if self.batch.nbytes and getattr(vllm_config.model_config, "enable_prompt_embeds", False):
            raise ValueError(
                "`--enable-prompt-embeds` lets requests have prompts without tokens, which a value model cannot read: "
                "leave it out, or use a value model of the form 'policy'."
            )
        self.requests: dict[int, _Request] = {}  # by row (V1) or slot (V2)
        self._numbers = itertools.count()
        self._hidden: torch.Tensor | None = None
        if self.batch.reads_hidden:
            watch = weakref.WeakMethod(self._watch)  # an engine that has ended is not kept
            watch_vllm_hidden_states(lambda hidden: None if (take := watch()) is None else take(hidden))

    def _watch(self, hidden: torch.Tensor) -> None:
        self._hidden = hidden

    @classmethod
    def validate_params(cls, sampling_params: Any) -> None:
        """
        Check the weight of a request. vLLM answers a `ValueError` with status 400 and its message.

        Args:
            sampling_params (`vllm.SamplingParams`): The request's settings.

        Raises:
            `ValueError`: As for [`~trl_ext.serving.vllm.settings.request_weights`].
        """
        if given_weight(sampling_params) is not None:
            config = vllm_config_of_caller()
            heads = None if config is None else heads_of_config(config.additional_config)
            request_weights(sampling_params, heads)

    def is_argmax_invariant(self) -> bool:
        """Guidance changes which token is likeliest."""
        return False

    # ------------------------------------------------------------------------------------------------- interface V1

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
                self.batch.release(other.number)

    # ------------------------------------------------------------------------------------------------- interface V2

    def add_request(self, req_idx: int, sampling_params: Any) -> bool:
        """A request takes a slot (V2). Returns whether it is guided."""
        return self._add(req_idx, sampling_params)

    def apply_staged_writes(self) -> None:
        """Has no effect: weights are passed with each step."""

    # --------------------------------------------------------------------------------------------------------- both

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
                GuidedRow(index, each.number, len(each.prompt) + len(each.output), each.weights)
                for index, each in sorted(self.requests.items())
            ]
            texts: Any = _RowTexts(self.requests, self.device)
        else:
            rows, texts = self._rows_of_slots(ctx), _SlotTexts(self.states, ctx.idx_mapping_np.tolist())
        if rows:
            self.batch.apply(logits, rows, texts, self._states_of(logits))
        return logits

    def _rows_of_slots(self, ctx: Any) -> list[GuidedRow]:
        rows = []
        for index, slot in enumerate(ctx.idx_mapping_np.tolist()):
            request, length = self.requests.get(slot), int(ctx.seq_lens_upper_bound_np[index])
            # Of a prompt that is read in chunks, the logits count only after the last one.
            if request is not None and length >= int(self.states.prefill_len.np[slot]):
                rows.append(GuidedRow(index, request.number, length, request.weights))
        return rows

    def _states_of(self, logits: torch.Tensor) -> torch.Tensor | None:
        if not self.batch.reads_hidden:
            return None
        found = 0 if self._hidden is None else len(self._hidden)
        if found != len(logits):
            raise RuntimeError(
                f"vLLM computed {found} hidden states and passes logits of {len(logits)} rows: this version cannot be "
                "guided by a value model of the form 'policy'. Use one of the form 'state' or 'action'."
            )
        return self._hidden

    def _add(self, place: int, sampling_params: Any, prompt: Sequence[int] = (), output: Sequence[int] = ()) -> bool:
        self._remove(place)
        try:
            weights = request_weights(sampling_params, self.batch.heads)
        except ValueError as error:  # `validate_params` has refused it, unless it did not know the heads
            logger.error("A request is not guided: %s", error)
            return False
        if weights is None:
            return False
        self.requests[place] = _Request(next(self._numbers), weights, prompt, output)
        return True

    def _remove(self, place: int) -> None:
        request = self.requests.pop(place, None)
        if request is not None:
            self.batch.release(request.number)


def _refuse(vllm_config: Any) -> None:
    """Raise `ValueError` for features of an engine that guidance cannot work with."""
    if vllm_config.speculative_config is not None:
        raise ValueError(
            "Guidance by value models does not work with speculative decoding: leave out `--speculative-config`."
        )
    if getattr(vllm_config.parallel_config, "enable_batch_sharded_sampling", False):
        raise ValueError(
            "Guidance by value models needs all rows on every rank: leave out `--enable-batch-sharded-sampling`."
        )


def _tokenizer(model_config: Any) -> Any:
    """The tokenizer of the served model; `None` if vLLM does without."""
    if model_config.skip_tokenizer_init:
        return None
    return load_tokenizer(
        model_config.tokenizer,
        revision=model_config.tokenizer_revision,
        trust_remote_code=model_config.trust_remote_code,
    )
