# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Properties of loaded models: what is inside them, what their forward takes, and how long their context is."""

import functools
import inspect
from typing import Any

import torch
from transformers import PreTrainedModel


def is_peft_model(model: torch.nn.Module) -> bool:
    """Whether `model` is a [`~peft.PeftModel`], without importing peft when nothing else has."""
    return hasattr(model, "peft_config") and hasattr(model, "get_base_model")


def base_of(model: torch.nn.Module) -> PreTrainedModel:
    """The transformers model inside a [`~peft.PeftModel`], or `model` itself."""
    return model.get_base_model() if is_peft_model(model) else model  # type: ignore[operator,return-value]


def trains_weights_of(model: torch.nn.Module, other: torch.nn.Module) -> bool:
    """Whether `other` changes when `model` is trained: they share a parameter that requires gradients in `model`."""
    trained = {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
    return any(id(parameter) in trained for parameter in other.parameters())


def backbone_of(model: torch.nn.Module) -> PreTrainedModel:
    """
    The layers of a model below its head, whose output has a `last_hidden_state`; the model itself if it has no head.

    `base_model` is the model itself where the class names its backbone by an attribute that it does not have, as that
    of Llama 4's language model does.
    """
    base: Any = base_of(model)
    backbone: Any = base.base_model
    if backbone is base and base.get_output_embeddings() is not None and not base.config.is_encoder_decoder:
        backbone = next((part for part in base.children() if isinstance(part, PreTrainedModel)), base)
    return backbone  # type: ignore[no-any-return]


def accepts_argument(model: torch.nn.Module, name: str) -> bool:
    """
    Whether the forward of a model has an argument of this name. A fused head or a wrapper around it does not matter.

    Args:
        model (`torch.nn.Module`): The model, or a [`~peft.PeftModel`] around it.
        name (`str`): Name of the argument.
    """
    model_class: type = type(base_of(model))
    return name in _forward_arguments(model_class)


@functools.cache
def _forward_arguments(model_class: type) -> frozenset[str]:
    return frozenset(inspect.signature(model_class.forward).parameters)  # type: ignore[attr-defined]


def embedding_rows(model: torch.nn.Module) -> int:
    """Number of token ids that a model has an embedding for; 0 if that is not known."""
    weight = getattr(base_of(model).get_input_embeddings(), "weight", None)
    shape: Any = getattr(weight, "ds_shape", getattr(weight, "shape", ()))  # under ZeRO-3, the shape is that of a part
    return int(shape[0]) if len(shape) == 2 else 0


def has_virtual_tokens(model: torch.nn.Module) -> bool:
    """Whether an adapter of `model` adds virtual tokens to its input or its cache (prompt learning)."""
    return any(adapter.is_prompt_learning for adapter in getattr(model, "peft_config", {}).values())


def inserted_tokens(model: torch.nn.Module) -> int:
    """Virtual tokens that the active adapter puts in front of every row (prompt tuning and P-tuning)."""
    if not is_peft_model(model):
        return 0
    config: Any = model.active_peft_config
    inserts = config.is_prompt_learning and config.peft_type not in ("PREFIX_TUNING", "CARTRIDGE")
    return int(config.num_virtual_tokens) if inserts else 0


def cache_name(model: torch.nn.Module) -> str:
    """
    Name of the KV cache among the arguments of a model: `"cache"` since transformers 5.24, `"past_key_values"` before
    and in remote code.

    Args:
        model (`torch.nn.Module`): The model, or a [`~peft.PeftModel`] around it.
    """
    return "cache" if accepts_argument(model, "cache") else "past_key_values"


def cache_of(output: Any) -> Any:
    """The KV cache in the output of a model, under either name; `None` if there is none."""
    return getattr(output, "cache", None) if hasattr(output, "cache") else getattr(output, "past_key_values", None)


def is_quantized(model: torch.nn.Module) -> bool:
    """Whether `model` was loaded in 8 or 4 bits."""
    return quantized_bits(model) > 0


def quantized_bits(model: torch.nn.Module) -> int:
    """The bits, 8 or 4, that `model` was loaded in, or 0."""
    return next((bits for bits in (4, 8) if getattr(model, f"is_loaded_in_{bits}bit", False)), 0)


def elements(parameter: torch.Tensor) -> int:
    """Number of elements of a parameter, of which 4 bits pack two into a byte, and ZeRO-3 keeps a part."""
    state = getattr(parameter, "quant_state", None)
    if state is not None:
        return int(torch.Size(state.shape).numel())
    return int(getattr(parameter, "ds_numel", 0) or parameter.numel())


def parameter_count(model: torch.nn.Module, *, trainable: bool = False) -> int:
    """
    Number of parameters, counted by [`elements`].

    Args:
        model (`torch.nn.Module`): The model.
        trainable (`bool`, *optional*, defaults to `False`): Whether only those that require gradients count.
    """
    return sum(elements(parameter) for parameter in model.parameters() if parameter.requires_grad or not trainable)


def has_quantized_weights(model: torch.nn.Module) -> bool:
    """Whether `model` has quantized weights. Works for a backbone too, which does not record how it was loaded."""
    return is_quantized(model) or any(not parameter.is_floating_point() for parameter in model.parameters())


def context_length(model: Any) -> int:
    """Context length of a language model in tokens; `0` if it is not known."""
    config = base_of(model).config.get_text_config()
    positions = int(getattr(config, "max_position_embeddings", 0) or 0)
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    # YaRN and similar scalings extend it, which some configs do not include. Some have one scaling per kind of layer.
    for scaling in (rope, *rope.values()) if positions else ():
        if isinstance(scaling, dict) and scaling.get("factor"):
            before = scaling.get("original_max_position_embeddings") or config.max_position_embeddings
            positions = max(positions, int(scaling["factor"] * before))
    return positions and max(1, positions - _unused_positions(model) - inserted_tokens(model))


def _unused_positions(model: Any) -> int:
    """Positions that texts cannot take: RoBERTa and its relatives count from the one after the padding's."""
    for name, module in model.named_modules() if isinstance(model, torch.nn.Module) else ():
        if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None:
            return int(module.padding_idx) + 1
    return 0


def is_causal(model: torch.nn.Module) -> bool:
    """
    Whether each position of a model sees only those before it, so that the last one has read the whole text.

    Args:
        model (`torch.nn.Module`): A transformers model. `False` for an encoder, and for an encoder with a decoder.
    """
    if getattr(base_of(model).config, "is_encoder_decoder", False):
        return False
    return any(getattr(module, "is_causal", False) is True for module in model.modules())


def learned_positions(model: Any) -> bool:
    """Whether a model has a table of position embeddings, which ends at its context length."""
    base, context = base_of(model), context_length(model)
    tables = [
        part
        for name, part in base.named_modules()
        if isinstance(part, torch.nn.Embedding) and part is not base.get_input_embeddings()
    ]
    return any(context <= table.num_embeddings <= context + 2 for table in tables)  # OPT's begins two positions late
