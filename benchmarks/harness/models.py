# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Models of the sizes that suites measure. Random weights do: a step takes as long with them as with others."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from trl_ext.models.adapters import wrap_with_peft
from trl_ext.models.load import load_model, use_exact_4bit_on_cpu

from .results import ROOT


MODELS = ROOT / "recipes" / "quickstart" / "models"
MODELS_7M = ROOT / "benchmarks" / "models"  # not in the distribution
# The two classifiers of the repository. Where one is the reward, the other one judges: no arm is trained on it.
REWARDS = (str(MODELS / "imdb-2m-reward"), str(MODELS_7M / "imdb-7m-reward"))
LORA_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class Shape:
    """
    Sizes of a Llama.

    Args:
        folder (`str`, *optional*): Directory of trained weights of these sizes in the repository, used if it is there.
    """

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    vocab_size: int
    tie_word_embeddings: bool
    folder: str = ""

    @property
    def weights_name(self) -> str:
        """Where the weights come from, as results state it: a directory of the repository, or `"random"`."""
        return self.weights.relative_to(ROOT).as_posix() if self.weights else "random"

    @property
    def weights(self) -> Path | None:
        """The directory of trained weights, or `None` where they are not at hand."""
        folder = ROOT / self.folder
        return folder if self.folder and (folder / "config.json").is_file() else None


SHAPES = {
    "tiny": Shape(64, 128, 2, 4, 2, 512, True),
    "imdb-2m": Shape(128, 352, 4, 4, 4, 8192, True, "recipes/quickstart/models/imdb-2m"),
    "imdb-7m": Shape(256, 704, 6, 4, 4, 8192, True),
    "llama-1b": Shape(2048, 8192, 16, 32, 8, 128256, True),
    "llama-8b": Shape(4096, 14336, 32, 32, 8, 128256, False),
}


def judge_of(reward: str) -> str:
    """The classifier of the repository that judges where another one, by its folder's name, is the reward; or `""`."""
    names = [Path(each).name for each in REWARDS]
    name = Path(reward).name
    return REWARDS[1 - names.index(name)] if name in names else ""


def tiny_models(case: Any) -> dict[str, Any]:
    """The fields of a case that name models, with the tiny one instead: for [`dataclasses.replace`]."""
    values = {each.name: getattr(case, each.name) for each in fields(case)}
    return {name: "tiny" for name, value in values.items() if isinstance(value, str) and value in SHAPES}


def tiny_length(tokens: int) -> int:
    """A sixteenth of a length in tokens, at least 4: different lengths stay different."""
    return max(4, tokens // 16)


def build(
    name: str,
    *,
    device: torch.device,
    dtype: torch.dtype,
    four_bit: bool = False,
    lora_rank: int = 0,
    gradient_checkpointing: bool = False,
    seed: int = 0,
) -> Any:
    """
    A model in training mode.

    Args:
        name (`str`): One of [`SHAPES`].
        device (`torch.device`): Where to make it.
        dtype (`torch.dtype`): Dtype of its weights; of those that stay unquantised, with `four_bit`.
        four_bit (`bool`, *optional*, defaults to `False`): nf4 with double quantisation in all linear maps of layers.
        lora_rank (`int`, *optional*, defaults to `0`): Rank of an adapter on these maps (`0`: full fine-tuning).
        gradient_checkpointing (`bool`, *optional*, defaults to `False`): Non-reentrant, every layer.
        seed (`int`, *optional*, defaults to `0`): Of random weights.
    """
    shape = SHAPES[name]
    torch.manual_seed(seed)
    if shape.weights is not None and not four_bit:
        model: Any = load_model(str(shape.weights), dtype=dtype, device_map=None).to(device)
    else:
        model = _random_model(shape, device, dtype)
    if four_bit:
        _quantize(model)
    if lora_rank:
        model = wrap_with_peft(model, lora_config(lora_rank))
    if gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        if lora_rank:
            model.enable_input_require_grads()
    return model.train()


def lora_config(rank: int) -> Any:
    """The config of an adapter on all linear maps of layers."""
    from peft import LoraConfig

    targets = list(LORA_TARGETS)
    return LoraConfig(r=rank, lora_alpha=2 * rank, lora_dropout=0.0, target_modules=targets, task_type="CAUSAL_LM")


def _random_model(shape: Shape, device: torch.device, dtype: torch.dtype) -> Any:
    config = LlamaConfig(
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.num_hidden_layers,
        num_attention_heads=shape.num_attention_heads,
        num_key_value_heads=shape.num_key_value_heads,
        vocab_size=shape.vocab_size,
        tie_word_embeddings=shape.tie_word_embeddings,
        max_position_embeddings=4096,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=1,
    )
    with device:
        return AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa")


def _quantize(model: Any) -> None:
    """What loading with a `BitsAndBytesConfig` does, for weights that are in no file."""
    import bitsandbytes as bnb

    for module in list(model.model.layers.modules()):
        for name, linear in list(module.named_children()):
            if isinstance(linear, torch.nn.Linear):
                kind = {"compress_statistics": True, "quant_type": "nf4"}
                sizes = (linear.in_features, linear.out_features)
                new = bnb.nn.Linear4bit(*sizes, bias=False, compute_dtype=torch.bfloat16, device="meta", **kind)
                new.weight = bnb.nn.Params4bit(linear.weight.data, requires_grad=False, **kind)
                setattr(module, name, new.to(linear.weight.device))
    model.is_loaded_in_4bit = True
    use_exact_4bit_on_cpu(model)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
