# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
The value model: a backbone, and a linear head that says what a text is worth after each of its tokens.

Letters: N sequences, T tokens, D hidden size, H heads.
"""

import hashlib
import inspect
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    BitsAndBytesConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from ..models import base_of, is_peft_model, is_quantized, load_model, use_exact_4bit_on_cpu, wrap_with_peft


if TYPE_CHECKING:
    from peft import PeftConfig

ADAPTER_FOLDER = "adapter"  # in the directory of a saved value model that is an adapter and a head


def vocabulary_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """A short name of the vocabulary: equal for tokenizers that give the same ids the same tokens."""
    return hashlib.sha256(json.dumps(sorted(tokenizer.get_vocab().items())).encode()).hexdigest()[:16]


class ValueConfig(PreTrainedConfig):
    r"""
    Configuration of a [`ValueModel`].

    Args:
        backbone_config (`dict` or [`~transformers.PreTrainedConfig`], *optional*):
            Configuration of the backbone.
        heads (`list[str]`, *optional*, defaults to `["reward"]`):
            Names of the heads, one a reward.
        reward_mean (`list[float]`, *optional*, defaults to zeros):
            What was subtracted from the rewards of each head before they were learned.
        reward_std (`list[float]`, *optional*, defaults to ones):
            What they were divided by: a value of 1 is this much reward.
        gamma (`float`, *optional*, defaults to `1.0`):
            Discount of the targets that the values were trained on.
        lam (`float`, *optional*, defaults to `0.95`):
            lambda of these targets.
        backbone_name (`str`, *optional*, defaults to `""`):
            Model that the backbone came from.
        adapter (`bool`, *optional*, defaults to `False`):
            Whether the saved weights are those of an adapter (in the folder `adapter`) and the head.
        tokenizer_name (`str`, *optional*, defaults to `""`):
            Tokenizer that the values were trained with.
        vocabulary (`str`, *optional*, defaults to `""`):
            Its [`vocabulary_digest`]; `""` if it is not known.
    """

    model_type = "trl_ext_value"

    backbone_config: dict | PreTrainedConfig | None = None
    heads: list[str] | None = None
    reward_mean: list[float] | None = None
    reward_std: list[float] | None = None
    gamma: float = 1.0
    lam: float = 0.95
    backbone_name: str = ""
    adapter: bool = False
    tokenizer_name: str = ""
    vocabulary: str = ""

    def __post_init__(self, **kwargs: Any) -> None:
        if isinstance(self.backbone_config, dict):
            self.backbone_config = AutoConfig.for_model(**self.backbone_config)
        self.heads = list(self.heads or ["reward"])
        if len(set(self.heads)) < len(self.heads):
            raise ValueError(f"The heads of a value model must have different names, got {self.heads}.")
        self.reward_mean = self.reward_mean or [0.0] * len(self.heads)
        self.reward_std = self.reward_std or [1.0] * len(self.heads)
        super().__post_init__(**kwargs)

    def get_text_config(self, *args: Any, **kwargs: Any) -> PreTrainedConfig:
        """The backbone's: what asks for a vocabulary or a width means those."""
        config = self.backbone_config
        return config.get_text_config(*args, **kwargs) if isinstance(config, PreTrainedConfig) else self

    def record_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Remember whose token ids the values are about."""
        self.tokenizer_name = str(getattr(tokenizer, "name_or_path", "") or "")
        self.vocabulary = vocabulary_digest(tokenizer)


class ValueOutput(NamedTuple):
    """
    Output of a [`ValueModel`]. No `ModelOutput` of transformers: that is a dictionary, and those have `values()`.

    Args:
        values (`torch.Tensor` of shape (N, T), or (N, T, H) with several heads):
            Value of the text up to and including each token, float32, in the units the head was trained in.
        last_hidden_state (`torch.Tensor` of shape (N, T, D)):
            What the head was applied to.
        past_key_values (*optional*):
            The backbone's cache, if asked for.
    """

    values: torch.Tensor
    last_hidden_state: torch.Tensor
    past_key_values: Any = None


class ValueModel(PreTrainedModel):
    """
    A backbone with a value head for each of one or several rewards.

    Made by [`ValueModel.from_backbone`] or [`ValueModel.from_pretrained`]; saved by `save_pretrained`, pushed by
    `push_to_hub`. A value model that is an adapter on its backbone is saved as adapter and head.

    Args:
        config ([`ValueConfig`]): Its configuration.
        backbone ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`], *optional*): A model without a head; by
            default a new one with random weights.
    """

    config_class = ValueConfig
    base_model_prefix = "backbone"
    supports_gradient_checkpointing = True
    # What the backbone supports is for the backbone to say.
    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = _supports_attention_backend = True
    # What matters in a value is a difference of a few hundredths in a number of a few units: bfloat16 has three
    # digits, 4 bits have one.
    _keep_in_fp32_modules: ClassVar[list[str]] = ["head"]
    _keep_in_fp32_modules_strict: ClassVar[list[str]] = ["head"]

    def __init__(self, config: ValueConfig, backbone: Any = None) -> None:
        super().__init__(config)
        if backbone is None:
            kwargs: dict[str, Any] = {"dtype": torch.get_default_dtype()}
            if config._attn_implementation:
                kwargs["attn_implementation"] = config._attn_implementation
            backbone = AutoModel.from_config(config.backbone_config, **kwargs)
        else:
            for module in backbone.modules():  # `post_init` would draw new weights for an adapter's layers
                module._is_hf_initialized = True
        self.backbone = backbone
        # float32 also where the default dtype is another: see above.
        self.head = nn.Linear(config.get_text_config().hidden_size, len(config.heads or ()), dtype=torch.float32)
        self.shares_policy = False
        self._holding = 0
        self.post_init()
        self._reset_head()

    def _init_weights(self, module: nn.Module) -> None:
        if module is self.head:
            self._reset_head()

    def _reset_head(self) -> None:
        # Reference code: the head starts at zero, so that the first targets are plain discounted rewards.
        if not self.head.weight.is_meta:
            nn.init.zeros_(self.head.weight)
            nn.init.zeros_(self.head.bias)

    # ---------------------------------------------------------------------------------------------------- making

    @classmethod
    def from_backbone(
        cls,
        backbone: "str | PreTrainedModel",
        heads: Sequence[str] = ("reward",),
        *,
        quantization_config: BitsAndBytesConfig | None = None,
        peft_config: "PeftConfig | None" = None,
        **init_kwargs: Any,
    ) -> "ValueModel":
        """
        A value model with heads of zeros on a backbone.

        Args:
            backbone (`str` or [`~transformers.PreTrainedModel`]):
                Hub id, directory or model. A language model or a classifier loses its head; of a model object the
                weights are used, not copied.
            heads (`Sequence[str]`, *optional*, defaults to `("reward",)`):
                Names of the heads.
            quantization_config ([`~transformers.BitsAndBytesConfig`], *optional*):
                4-bit or 8-bit loading of a backbone given by name.
            peft_config ([`~peft.PeftConfig`], *optional*):
                Adapter to add to the backbone.
            init_kwargs: Passed to `from_pretrained`.

        Raises:
            `ValueError`: A model object was given with `quantization_config`, or has an adapter on a head that it
                would lose.
        """
        if isinstance(backbone, str):
            name = backbone
            model = load_model(backbone, head="none", quantization_config=quantization_config, **init_kwargs)
        elif quantization_config is not None:
            raise ValueError("`quantization_config` was given for a backbone that is loaded already.")
        else:
            name = str(getattr(backbone.config, "_name_or_path", "") or "")
            model = headless(backbone)
        use_exact_4bit_on_cpu(model)
        if peft_config is not None:
            model = add_adapter(model, peft_config)
        config = ValueConfig(backbone_config=base_of(model).config, heads=list(heads), backbone_name=name)
        return cls(config, model).to_device_of(model)

    @classmethod
    def on_policy(
        cls, policy: PreTrainedModel, heads: Sequence[str] = ("reward",), *, peft_config: "PeftConfig"
    ) -> "ValueModel":
        """
        A value model that is an adapter and a head on the weights of `policy`, which stay where they are.

        The adapter works only while the value model computes: `policy` computes what it always did.

        Args:
            policy ([`~transformers.PreTrainedModel`]): A causal language model.
            heads (`Sequence[str]`, *optional*, defaults to `("reward",)`): Names of the heads.
            peft_config ([`~peft.PeftConfig`]): The adapter.
        """
        model = cls.from_backbone(policy, heads, peft_config=peft_config)
        model._share()
        return model

    def to_device_of(self, backbone: Any) -> "ValueModel":
        """Put the head where the backbone ends."""
        self.head.to(list(backbone.parameters())[-1].device)
        return self.train(backbone.training)

    # --------------------------------------------------------------------------------------------------- forward

    @property
    def head_names(self) -> tuple[str, ...]:
        """Names of the heads, in the order of the last dimension of [`ValueModel.value_of`]."""
        return tuple(self.config.heads)

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> ValueOutput:
        """
        Values of N sequences, after each of their tokens.

        Args:
            input_ids (`torch.Tensor` of shape (N, T)): Token ids, padded on either side.
            attention_mask (`torch.Tensor` of shape (N, T), *optional*): 1 for tokens, 0 for padding; with
                `past_key_values` over all columns so far.
            position_ids (`torch.Tensor` of shape (N, T), *optional*): By default each row counts its own tokens.
            past_key_values (*optional*): Cache of earlier tokens.
            use_cache (`bool`, *optional*): Whether to return a cache; by default if one was given.
            kwargs: Passed to the backbone.

        Returns:
            [`ValueOutput`]; the values of padding mean nothing.
        """
        if position_ids is None and attention_mask is not None and attention_mask.dim() == 2 and self._takes_positions:
            tokens = input_ids if input_ids is not None else kwargs["inputs_embeds"]
            position_ids = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)[:, -tokens.shape[1] :]
        if position_ids is not None:
            kwargs["position_ids"] = position_ids
        if past_key_values is not None:
            kwargs["past_key_values"] = past_key_values
        if self._takes_cache:
            kwargs["use_cache"] = past_key_values is not None if use_cache is None else use_cache
        kwargs.pop("return_dict", None)
        output = self.backbone(input_ids=input_ids, attention_mask=attention_mask, **kwargs)
        hidden_NTD = output.last_hidden_state
        values_NTH = self.value_of(hidden_NTD)
        values = values_NTH[..., 0] if len(self.config.heads) == 1 else values_NTH
        return ValueOutput(values, hidden_NTD, getattr(output, "past_key_values", None))

    def value_of(self, hidden: torch.Tensor) -> torch.Tensor:
        """Values (..., H), float32, of hidden states (..., D) of the backbone."""
        with torch.autocast(hidden.device.type, enabled=False):  # see `_keep_in_fp32_modules_strict`
            return self.head(hidden.to(self.head.weight.dtype)).float()

    @property
    def _takes_positions(self) -> bool:
        return "position_ids" in inspect.signature(type(base_of(self.backbone)).forward).parameters

    @property
    def _takes_cache(self) -> bool:
        return "use_cache" in inspect.signature(type(base_of(self.backbone)).forward).parameters

    def get_input_embeddings(self) -> nn.Module:
        return base_of(self.backbone).get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        base_of(self.backbone).set_input_embeddings(value)

    # ------------------------------------------------------------------------------- an adapter on another's weights

    def _share(self) -> None:
        """Switch the adapter off, except while the backbone computes."""
        self.shares_policy = True
        self._switch_adapter(False)
        self.backbone.register_forward_pre_hook(lambda *_: self._switch_adapter(True))
        self.backbone.register_forward_hook(lambda *_: self._switch_adapter(self._holding > 0), always_call=True)

    def _switch_adapter(self, on: bool) -> None:
        # PEFT's own switch takes the adapter's parameters out of training as well, between forward and backward.
        for module in self.backbone.modules():
            if hasattr(module, "_disable_adapters"):
                module._disable_adapters = not on

    @contextmanager
    def hold_adapter(self) -> Iterator[None]:
        """
        Inside this context the adapter on a policy's weights stays switched on, also between forwards.

        Training needs that: gradient checkpointing computes layers again in the backward pass.
        """
        if not self.shares_policy:
            yield
            return
        self._holding += 1
        self._switch_adapter(True)
        try:
            yield
        finally:
            self._holding -= 1
            self._switch_adapter(self._holding > 0)

    # ---------------------------------------------------------------------------------------------------- storage

    def save_pretrained(self, save_directory: Any, *args: Any, state_dict: Any = None, **kwargs: Any) -> None:
        """
        Write config and weights (safetensors) to a directory; with an adapter those of adapter and head alone.

        Args:
            save_directory (`str` or `os.PathLike`): The directory; it is created.
            state_dict (`dict`, *optional*): Weights to save instead of the model's own.
            args, kwargs: As for any [`~transformers.PreTrainedModel`].
        """
        self.config.adapter = is_peft_model(self.backbone)
        if self.config.adapter and kwargs.get("is_main_process", True):
            inner = {
                k.removeprefix("backbone."): v for k, v in (state_dict or {}).items() if k.startswith("backbone.")
            }
            self.backbone.save_pretrained(Path(save_directory) / ADAPTER_FOLDER, state_dict=inner or None)
        if self.config.adapter:
            state_dict = {f"head.{name}": value for name, value in (self.head.state_dict()).items()} | {
                name: value for name, value in (state_dict or {}).items() if name.startswith("head.")
            }
        super().save_pretrained(save_directory, *args, state_dict=state_dict, **kwargs)

    def load_adapter_and_head(self, path: str) -> None:
        """
        Take the weights of adapter and head from a directory that [`ValueModel.save_pretrained`] wrote.

        Args:
            path (`str`): The directory.
        """
        from peft import set_peft_model_state_dict
        from safetensors.torch import load_file

        weights = load_file(Path(path) / ADAPTER_FOLDER / "adapter_model.safetensors")
        set_peft_model_state_dict(self.backbone, weights)
        head = load_file(Path(path) / "model.safetensors")
        self.head.load_state_dict({name.removeprefix("head."): value for name, value in head.items()})

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls,
        pretrained_model_name_or_path: Any,
        *args: Any,
        backbone: PreTrainedModel | None = None,
        is_trainable: bool = False,
        **kwargs: Any,
    ) -> "ValueModel":
        """
        Load a saved value model.

        Args:
            pretrained_model_name_or_path (`str` or `os.PathLike`): Directory or Hub id.
            backbone ([`~transformers.PreTrainedModel`], *optional*): For a saved adapter and head, the model to put
                them on, whose weights are shared: a policy goes on computing what it did. By default the backbone is
                loaded by the name it had.
            is_trainable (`bool`, *optional*, defaults to `False`): Whether a saved adapter is to be trained further.
            args, kwargs: As for any [`~transformers.PreTrainedModel`] (`quantization_config`, `device_map`, `dtype`,
                `revision`, ...).

        Raises:
            `ValueError`: What is saved there is no value model; or `backbone` was given for a whole one, or cannot be
                found for an adapter.
        """
        hub = {name: kwargs[name] for name in ("revision", "token", "cache_dir", "subfolder") if name in kwargs}
        config = kwargs.pop("config", None) or AutoConfig.from_pretrained(pretrained_model_name_or_path, **hub)
        if not isinstance(config, ValueConfig):
            raise ValueError(
                f"{str(pretrained_model_name_or_path)!r} holds a model of type {config.model_type!r} and no value "
                "model. Make one from it with `ValueModel.from_backbone`, and train it."
            )
        if config.adapter:
            return cls._from_adapter(str(pretrained_model_name_or_path), config, backbone, is_trainable, hub, kwargs)
        if backbone is not None:
            raise ValueError("`backbone` was given for a value model that was saved with a backbone of its own.")
        model = super().from_pretrained(pretrained_model_name_or_path, *args, config=config, **kwargs)
        use_exact_4bit_on_cpu(model)
        return model

    @classmethod
    def _from_adapter(
        cls, path: str, config: ValueConfig, backbone: Any, is_trainable: bool, hub: dict, kwargs: dict
    ) -> "ValueModel":
        from peft import PeftModel
        from safetensors.torch import load_file
        from transformers.utils import cached_file

        shared = backbone is not None
        if shared:
            base = headless(backbone)
        elif config.backbone_name:
            init = {name: value for name, value in kwargs.items() if name not in hub}
            base = load_model(config.backbone_name, head="none", **init)
        else:
            raise ValueError(
                f"{path!r} holds an adapter whose backbone had no name. Pass it: `ValueModel.from_pretrained(..., "
                "backbone=model)`."
            )
        where = {k: v for k, v in hub.items() if k != "subfolder"}
        folder = "/".join(part for part in (hub.get("subfolder"), ADAPTER_FOLDER) if part)
        if Path(path).is_dir():
            peft = PeftModel.from_pretrained(base, str(Path(path) / folder), is_trainable=is_trainable)
        else:
            peft = PeftModel.from_pretrained(base, path, subfolder=folder, is_trainable=is_trainable, **where)
        if is_quantized(base):  # as in training, see `wrap_with_peft`
            for name, parameter in peft.named_parameters():
                if "lora_" in name and parameter.is_floating_point():
                    parameter.data = parameter.data.to(torch.bfloat16)
        model = cls(config, peft)
        model.head.load_state_dict(
            {k.removeprefix("head."): v for k, v in load_file(cached_file(path, "model.safetensors", **hub)).items()}
        )
        model = model.to_device_of(peft).eval()
        model.head.requires_grad_(is_trainable)
        if shared:
            model._share()
        return model


def headless(model: Any) -> PreTrainedModel:
    """
    The part of a language model or classifier below its head; a model without a head is returned as it is.

    Raises:
        `ValueError`: An adapter is on it, whose names would no longer fit.
    """
    if is_peft_model(model):
        if base_of(model).base_model is base_of(model):
            return model
        raise ValueError(
            "The backbone of a value model has an adapter already. Merge it first (`model.merge_and_unload()`)."
        )
    return model.base_model


def add_adapter(model: PreTrainedModel, peft_config: "PeftConfig") -> torch.nn.Module:
    """Add an adapter to a backbone; the task that `peft_config` names is that of the language model it is not."""
    import copy

    peft_config = copy.copy(peft_config)
    peft_config.task_type = None
    return wrap_with_peft(model, peft_config)


AutoConfig.register(ValueConfig.model_type, ValueConfig, exist_ok=True)
AutoModel.register(ValueConfig, ValueModel, exist_ok=True)
