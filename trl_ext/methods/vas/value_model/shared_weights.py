# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
Sharing the weights of a language model with a value model, without a change of the language model's outputs.

For an adapter on the weights: a switch that enables the adapter only while the value model runs. For a head on the
language model's own hidden states: the states of its last forward pass.

Dimensions: N sequences, S columns of the sequences so far, L columns of the last forward pass, D hidden size.
"""

import copy
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from trl_ext.models.properties import base_of
from trl_ext.upstream import adapter_layers, adapter_states, set_adapter_states

from .policy_weights import REPLACED


# Backbones that a value model with an adapter is running on, so that their hidden states are not the language model's.
_RUNNING: "weakref.WeakSet[torch.nn.Module]" = weakref.WeakSet()

# Adapters whose value models are gone, with the layers that hold them; see [`_empty_adapter`].
_GONE: list[tuple[list[Any], str]] = []


def _entrances(backbone: Any) -> list[torch.nn.Module]:
    """The modules by which a backbone is run: OPT's language model calls the decoder in its backbone itself."""
    decoder = backbone.get_decoder()
    return [backbone] if decoder is backbone else [decoder, backbone]


class AdapterSwitch:
    """
    Makes an adapter the only active one while its value model runs, and restores what was active before.

    The other model on these weights is unchanged, whatever its own adapters: they may be switched, disabled or added
    at any time. A deep copy of the backbone has a switch of its own.

    Args:
        backbone ([`~peft.PeftModel`]): The adapter around the backbone of the other model.
    """

    def __init__(self, backbone: Any) -> None:
        self.backbone = backbone
        self.name: str = backbone.active_adapter
        self.own = [
            layer
            for layer in adapter_layers(backbone)
            if any(self.name in name.split(".") for name, _ in layer.named_parameters())
        ]
        self._holding = 0
        self._before: tuple[list[Any], list[tuple[bool, Any]]] = [], []
        # Bound methods, which a deep copy of the backbone replaces by those of its own switch.
        backbone.register_forward_pre_hook(self._enter)
        backbone.register_forward_hook(self._leave, always_call=True)
        weakref.finalize(backbone, _empty_adapter, self.own, self.name).atexit = False

    def _enter(self, *_: Any) -> None:
        if not self._holding:
            self._switch_on()

    def _leave(self, *_: Any) -> None:
        if not self._holding:
            self._restore()

    def _switch_on(self) -> None:
        self._restore()  # after a forward pass that was interrupted
        layers = adapter_layers(self.backbone)
        self._check(layers)
        self._before = layers, adapter_states(layers)
        set_adapter_states(layers, [(False, [self.name])] * len(layers))
        _RUNNING.update(_entrances(base_of(self.backbone)))

    def _restore(self) -> None:
        set_adapter_states(*self._before)
        self._before = [], []
        _RUNNING.difference_update(_entrances(base_of(self.backbone)))

    def _check(self, layers: list[Any]) -> None:
        """Raise `ValueError` if the weights hold an adapter merged into them, or no longer the value model's own."""
        present = set(map(id, layers))
        if any(id(layer) not in present for layer in self.own):
            raise ValueError(
                "The value model's adapter was removed from the weights that it shares with the language model, for "
                "example by `merge_and_unload()`. Create or load the value model after that."
            )
        merged = sorted({name for layer in layers for name in getattr(layer, "merged_adapters", ())})
        if merged:
            raise ValueError(
                f"The adapter {merged[0]!r} is merged into the weights that the value model shares, which it was "
                "trained without: call `unmerge_adapter()` before the value model is used, or load a value model "
                "without `backbone=`, which then has weights of its own."
            )

    @contextmanager
    def hold(self) -> Iterator[None]:
        """
        Inside this context the adapter stays active, also between forward passes.

        Training needs this: gradient checkpointing runs layers again in the backward pass.
        """
        self._enter()
        self._holding += 1
        try:
            yield
        finally:
            self._holding -= 1
            self._leave()


def _empty_adapter(layers: list[Any], name: str) -> None:
    """
    Free the memory of an adapter whose value model is gone; the layers are those of a language model that stays.

    The garbage collector calls this at any time, for example in a loop over the modules or parameters of the language
    model. So nothing is taken out of the layers before [`_remove_gone`].
    """
    for layer in layers:
        for key, parameter in layer.named_parameters():
            if name in key.split("."):
                parameter.requires_grad_(False).data = parameter.data.new_empty(0)
    _GONE.append((layers, name))


def _remove_gone() -> None:
    """Take the adapters out whose value models are gone."""
    while _GONE:
        layers, name = _GONE.pop()
        for layer in layers:
            if hasattr(layer, "get_base_layer"):
                layer.delete_adapter(name)
            else:
                layer.delete_adapter(name, layer.active_adapters)


@contextmanager
def adapters_unchanged(model: torch.nn.Module) -> Iterator[None]:
    """
    Inside this context an adapter may be added to the weights of `model`, whose outputs, and what it saves, are the
    same afterwards.

    PEFT makes the new adapter the active one, and takes the others out of training. Adapters whose value models are
    gone are taken out first.
    """
    _remove_gone()
    layers = adapter_layers(model)
    states = adapter_states(layers)
    trained = [
        (parameter, parameter.requires_grad)
        for layer in layers
        for name, parameter in layer.named_parameters()
        if not name.startswith(REPLACED)
    ]
    try:
        yield
    finally:
        known = set(map(id, layers))
        new = [layer for layer in adapter_layers(model) if id(layer) not in known]
        set_adapter_states(
            layers + new, states + [(False, [])] * len(new)
        )  # no active one, so that others may be added
        for parameter, requires_grad in trained:
            parameter.requires_grad_(requires_grad)


class _Capture:
    """A forward hook that passes hidden states on to a [`LastHiddenStates`], without keeping it alive."""

    def __init__(self, target: "LastHiddenStates") -> None:
        self.target = weakref.ref(target)

    def __call__(self, module: torch.nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        target = self.target()
        if target is not None and module not in _RUNNING:
            target.take(kwargs.get("input_ids", args[0] if args else None), kwargs, output)

    def __deepcopy__(self, memo: Any) -> "_Capture":
        """The hook of a copied backbone passes on to the copy of the target, which `memo` keeps alive meanwhile."""
        target = self.target()
        return _Capture(LastHiddenStates() if target is None else copy.deepcopy(target, memo))


class LastHiddenStates:
    """
    Keeps a reference to the last hidden states of a backbone, for a logits processor that is called afterwards.

    It works however the model is run: by `generate` with or without a KV cache, in a beam search, or on a complete
    text. It costs no computation.

    Args:
        backbone ([`~transformers.PreTrainedModel`], *optional*): The model without its head, whose output has a
            `last_hidden_state`.
    """

    def __init__(self, backbone: Any = None) -> None:
        self.clear()
        for module in [] if backbone is None else _entrances(backbone):
            handle = module.register_forward_hook(_Capture(self), with_kwargs=True)
            weakref.finalize(self, handle.remove)

    def __deepcopy__(self, memo: Any) -> "LastHiddenStates":
        """Without hidden states, for the copy of the backbone: see [`_Capture`]."""
        memo[id(self)] = made = LastHiddenStates()
        return made

    def clear(self) -> None:
        """Drop the hidden states and free their memory."""
        self.hidden_NLD: torch.Tensor | None = None
        self.ids_NL: torch.Tensor | None = None
        self._before: int | None = 0

    def take(self, ids: torch.Tensor | None, kwargs: dict[str, Any], output: Any) -> None:
        self.hidden_NLD, self.ids_NL = output.last_hidden_state.detach(), ids
        columns, cache = self.hidden_NLD.shape[1], kwargs.get("cache", kwargs.get("past_key_values"))
        try:
            length = columns if cache is None else cache.get_seq_length()
        except ValueError:  # a cache of recurrent layers only
            length = None
        if isinstance(length, int) and length < columns:  # one that begins with such a layer
            length = None
        if columns == 1 and not isinstance(length, int):
            self._before = None  # the last column, whatever its number: reading a static cache's length synchronises
        else:
            self._before = 0 if length is None else int(length) - columns

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
                f"while the language model that it was loaded with generates. {_OTHERS}"
            )
        last = 0 if self._before is None else columns - 1 - self._before
        if not len(hidden) or len(ids_NS) % len(hidden) or not 0 <= last < hidden.shape[1]:
            raise ValueError(
                f"The language model's last forward pass read {len(hidden)} rows up to column "
                f"{(self._before or 0) + hidden.shape[1]}, the sequences have {len(ids_NS)} and {columns}. {_OTHERS}"
            )
        repeats = len(ids_NS) // len(hidden)
        if self.ids_NL is not None:
            read, asked = self.ids_NL[:, : last + 1], ids_NS[:, columns - last - 1 :]
            if not torch.equal(read.repeat_interleave(repeats, 0).to(asked), asked):
                raise ValueError(f"The language model's last forward pass was over other tokens. {_OTHERS}")
        return hidden[:, last].repeat_interleave(repeats, 0) if repeats > 1 else hidden[:, last]


_OTHERS = (
    "A value model of this form reads the hidden states of the forward pass that computed the logits. Assisted "
    "decoding (`assistant_model`, `prompt_lookup_num_tokens`) and `guidance_scale` make others in between: leave them "
    "out, or use a value model of the form 'state' or 'action'."
)
