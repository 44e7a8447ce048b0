# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
Sharing the weights of a language model with a value model, without a change of the language model's outputs.

For an adapter on the weights: a switch that enables the adapter only while the value model runs. For a head on the
language model's own hidden states: the states of its last forward pass.

Dimensions: N sequences, S columns of the sequences so far, L columns of the last forward pass, D hidden size.
"""

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from trl_ext.upstream import switch_adapters


class AdapterSwitch:
    """
    Enables an adapter only while the backbone runs, so that the model whose weights it shares is unchanged.

    Args:
        backbone ([`~peft.PeftModel`]): The adapter around the backbone of the other model.
    """

    def __init__(self, backbone: torch.nn.Module) -> None:
        self.backbone = backbone
        self._holding = 0
        self._turn(False)
        backbone.register_forward_pre_hook(lambda *_: self._turn(True))
        backbone.register_forward_hook(lambda *_: self._turn(self._holding > 0), always_call=True)

    def _turn(self, on: bool) -> None:
        switch_adapters(self.backbone, on)

    @contextmanager
    def hold(self) -> Iterator[None]:
        """
        Inside this context the adapter stays enabled, also between forward passes.

        Training needs this: gradient checkpointing runs layers again in the backward pass.
        """
        self._holding += 1
        self._turn(True)
        try:
            yield
        finally:
            self._holding -= 1
            self._turn(self._holding > 0)


class LastHiddenStates:
    """
    Keeps a reference to the last hidden states of a backbone, for a logits processor that is called afterwards.

    It works however the model is run: by `generate` with or without a KV cache, in a beam search, or on a complete
    text. It costs no computation.

    Args:
        backbone (`torch.nn.Module`): The model without its head, whose output has a `last_hidden_state`.
    """

    def __init__(self, backbone: torch.nn.Module) -> None:
        self.clear()
        reference = weakref.ref(self)  # the hook must not keep this object alive

        def capture(module: torch.nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
            capturing = reference()
            if capturing is not None:
                capturing._take(kwargs.get("input_ids", args[0] if args else None), kwargs, output)

        handle = backbone.register_forward_hook(capture, with_kwargs=True)
        weakref.finalize(self, handle.remove)

    def clear(self) -> None:
        """Drop the hidden states and free their memory."""
        self.hidden_NLD: torch.Tensor | None = None
        self.ids_NL: torch.Tensor | None = None
        self._before: int | None = 0

    def _take(self, ids: torch.Tensor | None, kwargs: dict[str, Any], output: Any) -> None:
        self.hidden_NLD, self.ids_NL = output.last_hidden_state.detach(), ids
        columns, cache = self.hidden_NLD.shape[1], kwargs.get("cache", kwargs.get("past_key_values"))
        if columns == 1:
            self._before = None  # the last column, whatever its number: reading the cache's length may synchronise
        else:
            self._before = int(cache.get_seq_length()) - columns if cache is not None else 0

    def after(self, ids_NS: torch.Tensor) -> torch.Tensor:
        """
        The hidden states at the last token of these sequences.

        Args:
            ids_NS (`torch.Tensor` of shape `(N, S)`): Sequences that the last forward pass has read; it may have read
                further tokens after them. Rows may be repeated, if it read each of them once.

        Returns:
            `torch.Tensor` of shape `(N, D)`.

        Raises:
            `ValueError`: The last forward pass has read other sequences.
        """
        hidden, columns = self.hidden_NLD, ids_NS.shape[1]
        if hidden is None:
            raise ValueError(
                "The language model has not computed anything yet: a value model of the form 'policy' works only "
                "while the language model that it was loaded with generates."
            )
        last = 0 if self._before is None else columns - 1 - self._before
        if not len(hidden) or len(ids_NS) % len(hidden) or not 0 <= last < hidden.shape[1]:
            raise ValueError(
                f"The language model's last forward pass had {len(hidden)} rows and {hidden.shape[1]} columns, the "
                f"sequences have {len(ids_NS)} and {columns}: {_OTHERS}"
            )
        repeats = len(ids_NS) // len(hidden)
        if self.ids_NL is not None:
            read, asked = self.ids_NL[:, : last + 1], ids_NS[:, columns - last - 1 :]
            if not torch.equal(read.repeat_interleave(repeats, 0).to(asked), asked):
                raise ValueError(f"The language model's last forward pass was over other tokens: {_OTHERS}")
        return hidden[:, last].repeat_interleave(repeats, 0) if repeats > 1 else hidden[:, last]


_OTHERS = "call the processor directly after the forward pass that computed the logits."
