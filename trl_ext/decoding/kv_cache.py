# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""KV caches for `generate`: preallocated in steps, and computed once per prompt for its completions."""

from typing import Any

import torch
from transformers import DynamicCache, DynamicLayer, PreTrainedModel

from trl_ext.models.properties import accepts_argument, base_of, cache_of, has_virtual_tokens
from trl_ext.models.sharding import is_sharded


class PreallocatedCacheLayer(DynamicLayer):
    """A cache layer that writes new tokens into preallocated memory. Its parent copies all entries for each token."""

    spare = 64  # tokens that are allocated beyond those needed
    keys: torch.Tensor
    values: torch.Tensor
    buffers: tuple[torch.Tensor, torch.Tensor] | None = None

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        old = self.get_seq_length()
        new = old + key_states.shape[-2]
        if self.buffers is None or self.buffers[0].shape[-2] < new:
            longer = [s.new_empty(*s.shape[:2], new + self.spare, s.shape[3]) for s in (key_states, value_states)]
            if old:
                longer[0][:, :, :old], longer[1][:, :, :old] = self.keys, self.values
            self.buffers = (longer[0], longer[1])
        self.buffers[0][:, :, old:new], self.buffers[1][:, :, old:new] = key_states, value_states
        self.keys, self.values = (buffer[:, :, :new] for buffer in self.buffers)
        return self.keys, self.values


def prompt_cache(
    model: PreTrainedModel, ids_PT: torch.Tensor, mask_PT: torch.Tensor, repeats: int
) -> DynamicCache | None:
    """
    Keys and values of all prompt tokens but the last, computed once per prompt and repeated for its K sequences.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]): The language model.
        ids_PT, mask_PT (`torch.Tensor` of shape `(P, T)`): Prompts, padded on the left.
        repeats (`int`): K.

    Returns:
        [`~transformers.DynamicCache`] or `None`: `None` where the model has no plain attention cache (recurrent
            layers, sliding windows, prompt tuning), and for a sharded model, in which all processes need the same
            number of forward passes, prompts of one token included. `generate` then computes the prompts itself.
    """
    if ids_PT.shape[1] == 1 or is_sharded(model) or has_virtual_tokens(model):
        return None
    inputs: dict[str, Any] = {"input_ids": ids_PT[:, :-1], "attention_mask": mask_PT[:, :-1], "use_cache": True}
    if accepts_argument(model, "position_ids"):
        inputs["position_ids"] = (mask_PT[:, :-1].cumsum(-1) - 1).clamp(min=0)
    if accepts_argument(model, "logits_to_keep"):  # the logits of the prompt are not needed
        inputs["logits_to_keep"] = 1
    # The model inside adapters, as PEFT's `generate` calls it: accelerate's autocast is around an adapter's forward,
    # where values would have another dtype than those of later tokens.
    cache: Any = cache_of(base_of(model)(**inputs))
    if type(cache) is not DynamicCache or any(type(layer) is not DynamicLayer for layer in cache.layers):
        return None
    for i, layer in enumerate(cache.layers):
        cache.layers[i] = PreallocatedCacheLayer()
        cache.layers[i].update(layer.keys.repeat_interleave(repeats, 0), layer.values.repeat_interleave(repeats, 0))
    return cache
