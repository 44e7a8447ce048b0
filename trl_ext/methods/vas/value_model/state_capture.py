# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
The hidden states that a model has just computed for somebody else.

N sequences, S columns of them so far, L columns of the last forward, D hidden size.
"""

import weakref
from typing import Any

import torch


class LastStates:
    """
    Keeps what a model's layers gave last, for a logits processor that is called after it.

    Whatever runs the model (`generate` with or without a cache, beams, a whole text at once), the state that the next
    token was predicted from is there already. A reference to the last hidden states is all that it costs.

    Args:
        backbone (`torch.nn.Module`): The layers below the model's head, whose output has a `last_hidden_state`.
    """

    def __init__(self, backbone: torch.nn.Module) -> None:
        self.clear()
        keeper = weakref.ref(self)  # the model must not keep its listeners alive

        def listen(module: torch.nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
            listener = keeper()
            if listener is not None:
                listener._take(kwargs.get("input_ids", args[0] if args else None), kwargs, output)

        handle = backbone.register_forward_hook(listen, with_kwargs=True)
        weakref.finalize(self, handle.remove)

    def clear(self) -> None:
        """Forget the last forward, and give back its memory."""
        self.hidden_NLD: torch.Tensor | None = None
        self.ids_NL: torch.Tensor | None = None
        self._before: int | None = 0

    def _take(self, ids: torch.Tensor | None, kwargs: dict[str, Any], output: Any) -> None:
        self.hidden_NLD, self.ids_NL = output.last_hidden_state.detach(), ids
        columns, cache = self.hidden_NLD.shape[1], kwargs.get("cache", kwargs.get("past_key_values"))
        if columns == 1:
            self._before = None  # it is the last column, however many there were: no need to ask a device
        else:
            self._before = int(cache.get_seq_length()) - columns if cache is not None else 0

    def after(self, ids_NS: torch.Tensor) -> torch.Tensor:
        """
        The states after these sequences, of shape (N, D).

        Args:
            ids_NS (`torch.Tensor` of shape `(N, S)`): What the model has read, perhaps with more behind it; or each
                row several times, where it read equal rows once.

        Raises:
            `ValueError`: That is not what it has read.
        """
        hidden, columns = self.hidden_NLD, ids_NS.shape[1]
        if hidden is None:
            raise ValueError(
                "The language model has not computed anything that could be read: use this where that very model "
                "generates."
            )
        last = 0 if self._before is None else columns - 1 - self._before
        if not len(hidden) or len(ids_NS) % len(hidden) or not 0 <= last < hidden.shape[1]:
            raise ValueError(
                f"The language model's last forward was over {len(hidden)} rows and {hidden.shape[1]} columns, the "
                f"sequences have {len(ids_NS)} and {columns}: {_OTHERS}"
            )
        repeats = len(ids_NS) // len(hidden)
        if self.ids_NL is not None:
            read, asked = self.ids_NL[:, : last + 1], ids_NS[:, columns - last - 1 :]
            if not torch.equal(read.repeat_interleave(repeats, 0).to(asked), asked):
                raise ValueError(f"The language model's last forward was over other tokens: {_OTHERS}")
        return hidden[:, last].repeat_interleave(repeats, 0) if repeats > 1 else hidden[:, last]


_OTHERS = "call the processor after the forward that gave the scores."
