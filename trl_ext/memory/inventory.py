# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""What of a model occupies memory, found in a model without weights or in one that is loaded."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM

from trl_ext.models.adapters import wrap_with_peft
from trl_ext.models.architecture import FULL, hidden_width, layer_kinds
from trl_ext.models.properties import backbone_of, base_of, elements, is_peft_model, quantized_bits


# Bytes of a weight in nf4 with double quantization: 4 bits, 8 bits for each 64, and 32 for each 64 x 256 (QLoRA,
# arXiv 2305.14314, section 3).
_NF4 = 0.5 + 1 / 64 + 4 / (64 * 256)


@dataclass(frozen=True)
class Linear:
    """
    A linear map in the layers of a model.

    Args:
        inputs, outputs (`int`): Channels.
        source (`str`): What it reads: `"norm"`, `"attention"` (the output of the heads) or `"mlp"` (what is between
            the two halves of an MLP).
        in_attention (`bool`): Whether it belongs to the attention.
        rank (`int`, *optional*, defaults to `0`): Rank of a LoRA adapter on it.
        trained (`bool`, *optional*, defaults to `False`): Whether its own weights are trained.
    """

    inputs: int
    outputs: int
    source: str
    in_attention: bool
    rank: int = 0
    trained: bool = False

    @property
    def weights(self) -> int:
        """Elements of its matrix."""
        return self.inputs * self.outputs


@dataclass(frozen=True)
class Inventory:
    """
    Sizes of a language model, summed over its layers.

    Args:
        hidden, vocabulary, layers, heads (`int`): Width, tokens, number of layers, attention heads of one layer.
        linears (`tuple[Linear, ...]`): The linear maps in the layers.
        other (`int`): Parameters of the layers that are not in linear maps: norms, biases, experts.
        embedding, head (`int`): Parameters of the embedding, and of a head with weights of its own.
        norms (`int`): Channels that norms read for a token.
        queries, keys (`int`): Channels of the queries, and of the keys (or the values), for a token.
        experts (`int`): Channels between the two halves of the experts that read a token.
        shares_rows (`bool`): Whether its layers can read a prompt once for all of its completions.
        weight_bytes (`int`): Bytes of a weight that is not quantized.
        bits (`int`): Bits of the linear maps if they are quantized, else 0.
        trained, trained_bytes (`int`): Elements that are trained, and bytes of all of them.
        adapter_bytes (`int`): Bytes of one weight of an adapter; 0 if there is none.
    """

    hidden: int
    vocabulary: int
    layers: int
    heads: int
    linears: tuple[Linear, ...]
    other: int
    embedding: int
    head: int
    norms: int
    queries: int
    keys: int
    experts: int
    shares_rows: bool
    weight_bytes: int
    bits: int
    trained: int
    trained_bytes: int
    adapter_bytes: int

    @property
    def linear(self) -> int:
        """Parameters of the linear maps, which 4 and 8 bits quantize."""
        return sum(each.weights for each in self.linears)

    @property
    def parameters(self) -> int:
        """All parameters but those of an adapter."""
        return self.linear + self.other + self.embedding + self.head

    @property
    def first_halves(self) -> int:
        """Channels that the first half of the MLPs returns for a token, those of a gate included."""
        own = sum(each.outputs for each in self.linears if not each.in_attention and each.source == "norm")
        return own + 2 * self.experts

    @property
    def product(self) -> int:
        """Channels that the second half of the MLPs reads for a token."""
        return sum(each.inputs for each in self.linears if each.source == "mlp") + self.experts

    @property
    def is_trained_whole(self) -> bool:
        """Whether the weights of the model itself are trained."""
        return self.trained > 0 and not self.adapter_bytes

    @property
    def weights_bytes(self) -> float:
        """Bytes of the weights, without an adapter."""
        quantized = {4: _NF4, 8: 1.0}.get(self.bits, float(self.weight_bytes))
        return self.linear * quantized + (self.parameters - self.linear) * self.weight_bytes

    @classmethod
    def from_config(
        cls,
        config: Any,
        *,
        dtype: torch.dtype = torch.float32,
        bits: int = 0,
        peft_config: Any = None,
        trained: bool = True,
        head: bool = True,
        trust_remote_code: bool = False,
    ) -> "Inventory":
        """
        The sizes of a model with this config, which is built without weights.

        Args:
            config ([`~transformers.PreTrainedConfig`]): The config of the language model.
            dtype (`torch.dtype`, *optional*, defaults to `torch.float32`): Of weights that are not quantized.
            bits (`int`, *optional*, defaults to `0`): 4 or 8 if the linear maps are quantized.
            peft_config ([`~peft.PeftConfig`], *optional*): An adapter to be trained.
            trained (`bool`, *optional*, defaults to `True`): Whether the model, or the adapter, is trained.
            head (`bool`, *optional*, defaults to `True`): Whether it has a head that predicts tokens.
            trust_remote_code (`bool`, *optional*, defaults to `False`): Whether to run code that comes with the model.
        """
        with torch.device("meta"):
            kind = AutoModelForCausalLM if head else AutoModel
            model = kind.from_config(config, dtype=dtype, trust_remote_code=trust_remote_code)
            model = wrap_with_peft(model, peft_config)
        if not trained:
            model.requires_grad_(False)
        return cls.of(model, bits)

    @classmethod
    def of(cls, model: Any, bits: int | None = None) -> "Inventory":
        """
        The sizes of a model.

        Args:
            model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]): A language model, or one without a head.
            bits (`int`, *optional*): Bits of its linear maps, 0 if they are not quantized. By default as it is.
        """
        base = base_of(model)
        config, backbone = base.config.get_text_config(), backbone_of(base)
        embedding, head = base.get_input_embeddings(), base.get_output_embeddings()
        heads = int(getattr(config, "num_attention_heads", 0) or 1)
        width = int(getattr(config, "head_dim", None) or config.hidden_size // heads)
        kv = int(getattr(config, "num_key_value_heads", None) or heads) * width
        layers = int(config.num_hidden_layers)
        linears = tuple(_linears(backbone, heads * width))
        table = elements(embedding.weight)
        inside = sum(elements(p) for name, p in backbone.named_parameters() if ".lora_" not in name)
        inner = int(getattr(config, "moe_intermediate_size", 0) or getattr(config, "intermediate_size", 0) or 0)
        trained = [p for p in model.parameters() if p.requires_grad]
        bits = quantized_bits(base) if bits is None else bits
        adapted = is_peft_model(model)
        # On quantized weights an adapter is bfloat16 (`models/adapters.py`), also before the weights are there.
        size = 2 if bits else None
        return cls(
            hidden=hidden_width(config),
            vocabulary=embedding.num_embeddings,
            layers=layers,
            heads=heads,
            linears=linears,
            other=inside - table - sum(each.weights for each in linears),
            embedding=table,
            head=elements(head.weight) if head is not None and head.weight is not embedding.weight else 0,
            norms=sum(_norms(backbone, width, heads * width, kv)),
            queries=heads * width * layers,
            keys=kv * layers,
            experts=int(getattr(config, "num_experts_per_tok", 0) or 0) * inner * layers,
            shares_rows=layer_kinds(config) == {FULL} and not config.is_encoder_decoder,
            weight_bytes=embedding.weight.element_size(),
            bits=bits,
            trained=sum(elements(p) for p in trained),
            trained_bytes=sum(elements(p) * ((adapted and size) or p.element_size()) for p in trained),
            adapter_bytes=(size or max((p.element_size() for p in trained), default=0)) if adapted and trained else 0,
        )


def _linears(backbone: nn.Module, attended: int) -> Iterator[Linear]:
    """The linear maps in the layers, each with the adapter on it."""
    for name, module in backbone.named_modules():
        parts = [part for part in name.split(".") if part != "base_layer"]
        weight = getattr(module, "weight", None)
        inside_layer = any(part.isdigit() for part in parts)
        if ".lora_" in name or hasattr(module, "lora_A") or not hasattr(module, "in_features") or not inside_layer:
            continue
        assert isinstance(weight, torch.Tensor)
        above = backbone.get_submodule(name.removesuffix(".base_layer")) if name.endswith(".base_layer") else module
        ranks = [adapter.out_features for adapter in getattr(above, "lora_A", {}).values()]
        in_attention = any("att" in part for part in parts[:-1])
        second = parts[-1].startswith(_SECOND) or parts[-1] == "dense"
        source = ("attention" if in_attention else "mlp") if second else "norm"
        sizes = int(module.in_features), int(module.out_features)  # type: ignore[arg-type]
        yield Linear(*sizes, source, in_attention, sum(ranks), weight.requires_grad)


# Names of the last linear map of an attention or an MLP.
_SECOND = ("o_proj", "out_proj", "down", "dense_4h", "fc2", "w2", "fc_out", "c_proj")


def _norms(backbone: nn.Module, width: int, queries: int, keys: int) -> Iterator[int]:
    """Channels for a token of each norm in the layers. Those of queries and keys read all heads."""
    for name, module in backbone.named_modules():
        if type(module).__name__.endswith("Norm") and any(part.isdigit() for part in name.split(".")):
            size = sum(elements(parameter) for parameter in list(module.parameters())[:1])
            last = name.rpartition(".")[2]
            yield (queries if last[0] == "q" else keys) if size == width and last[0] in "qk" else size
