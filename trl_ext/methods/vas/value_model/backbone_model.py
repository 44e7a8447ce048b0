# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
Base class of models with heads of their own on a pretrained backbone: running the backbone, saving and loading.

Dimensions: N sequences, T tokens, D hidden size.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModel, PreTrainedModel
from transformers.utils import cached_file

from trl_ext.models.load import (
    freeze,
    from_folders_above,
    hub_arguments,
    load_model,
    locate,
    saved_config,
    use_exact_4bit_on_cpu,
)
from trl_ext.models.properties import (
    accepts_argument,
    backbone_of,
    base_of,
    cache_name,
    cache_of,
    is_peft_model,
)
from trl_ext.upstream import attention_implementation, mark_initialized

from .backbones import headless, save_adapter, with_saved_adapter
from .config import BackboneConfig, is_remote_code
from .policy_weights import VALUE_ADAPTER, save_without_adapters
from .shared_weights import AdapterSwitch, LastHiddenStates, adapters_unchanged


ADAPTER_FOLDER = "adapter"  # in the directory of a saved model that is an adapter and a head


class BackboneModel(PreTrainedModel):
    """
    A backbone, with heads that subclasses add.

    The backbone either has weights of its own, or it is an adapter on another model's weights (`adapter`), or another
    model's backbone without changes (`head_only`). Weights of another model are not saved.

    Args:
        config ([`BackboneConfig`]): The configuration.
        backbone ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`], *optional*): A model without a head. By
            default a new one with random weights.

    Attributes:
        shares_policy (`bool`): Whether the backbone's weights are shared with a language model.
        captured ([`LastHiddenStates`] or `None`): Hidden states of that language model, for `head_only`.
    """

    config_class = BackboneConfig
    base_model_prefix = "backbone"
    supports_gradient_checkpointing = True
    what: ClassVar[str] = "model"  # in error messages
    saved_folders: ClassVar[tuple[str, ...]] = (ADAPTER_FOLDER,)
    # The backbone checks its own attention implementation.
    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = _supports_attention_backend = True

    def __init__(self, config: BackboneConfig, backbone: Any = None) -> None:
        super().__init__(config)
        if backbone is None:
            kwargs: dict[str, Any] = {"dtype": torch.get_default_dtype()}
            if is_remote_code(config.backbone_config):
                kwargs["trust_remote_code"] = True  # it runs already
            if attention_implementation(config):
                kwargs["attn_implementation"] = attention_implementation(config)
            backbone = AutoModel.from_config(config.backbone_config, **kwargs)
        else:
            for module in backbone.modules():  # otherwise `post_init` initialises an adapter's layers again
                mark_initialized(module)
        self.backbone = freeze(backbone) if config.head_only else backbone
        self.shares_policy = False
        self.switch: AdapterSwitch | None = None
        self.captured: LastHiddenStates | None = None

    def to_device_of(self, backbone: Any) -> Any:
        """Move the heads to the device of the backbone's last layer, and take its training mode."""
        return self.heads_to(list(backbone.parameters())[-1].device).train(backbone.training)

    def heads_to(self, device: torch.device) -> Any:
        """Move the heads to a device."""
        for _, head in self._heads():
            head.to(device)
        return self

    def _heads(self) -> Iterator[tuple[str, nn.Module]]:
        return ((name, module) for name, module in self.named_children() if name != "backbone")

    # --------------------------------------------------------------------------------------------------- forward

    def encode(
        self,
        input_ids: torch.Tensor | None,
        attention_mask: torch.Tensor | None,
        position_ids: torch.Tensor | None,
        past_key_values: Any,
        use_cache: bool | None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, Any]:
        """
        Run the backbone.

        Args:
            input_ids (`torch.Tensor` of shape `(N, T)`): Token ids, padded on either side.
            attention_mask (`torch.Tensor` of shape `(N, T)`): 1 for tokens, 0 for padding; with `past_key_values`
                for all columns so far.
            position_ids (`torch.Tensor` of shape `(N, T)`): By default the number of tokens before each in its row.
            past_key_values: KV cache of earlier tokens.
            use_cache (`bool`): Whether to return a KV cache; by default if one was given.
            kwargs: Passed to the backbone.

        Returns:
            Hidden states of shape (N, T, D), and the KV cache or `None`.
        """
        plain = attention_mask is not None and attention_mask.dim() == 2
        if position_ids is None and plain and accepts_argument(self.backbone, "position_ids"):
            tokens = input_ids if input_ids is not None else kwargs["inputs_embeds"]
            position_ids = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)[:, -tokens.shape[1] :]  # type: ignore[union-attr]
        if position_ids is not None:
            kwargs["position_ids"] = position_ids
        if past_key_values is not None:
            kwargs[cache_name(self.backbone)] = past_key_values
        if accepts_argument(self.backbone, "use_cache"):
            kwargs["use_cache"] = past_key_values is not None if use_cache is None else use_cache
        kwargs.pop("return_dict", None)
        with torch.no_grad() if self.config.head_only else nullcontext():
            output = self.backbone(input_ids=input_ids, attention_mask=attention_mask, **kwargs)
        return output.last_hidden_state, cache_of(output)

    def train(self, mode: bool = True) -> Any:
        """Set the training mode, except for another model's backbone, which stays in evaluation mode."""
        super().train(mode)
        if self.config.head_only:
            self.backbone.eval()
        return self

    def get_input_embeddings(self) -> nn.Module:
        return base_of(self.backbone).get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        base_of(self.backbone).set_input_embeddings(value)

    # -------------------------------------------------------------------------------------- on another model's weights

    def _share(self, policy: Any) -> None:
        """
        Prepare for a backbone whose weights are those of `policy`: its outputs, and what it saves, must not change.
        """
        self.shares_policy = True
        if self.config.head_only:
            self.captured = LastHiddenStates(self.backbone)
        else:
            self.switch = AdapterSwitch(self.backbone)
            save_without_adapters(policy)

    @contextmanager
    def hold_adapter(self) -> Iterator[None]:
        """
        Inside this context an adapter on shared weights stays enabled; see
        [`~trl_ext.methods.vas.value_model.shared_weights.AdapterSwitch`].
        """
        with self.switch.hold() if self.switch is not None else nullcontext():
            yield

    # ---------------------------------------------------------------------------------------------------- storage

    @property
    def saves_parts(self) -> bool:
        """Whether the backbone's weights are not saved."""
        return is_peft_model(self.backbone) or self.config.head_only

    def save_pretrained(self, save_directory: Any, *args: Any, state_dict: Any = None, **kwargs: Any) -> None:
        """
        Save config and weights (safetensors); for a backbone with an adapter, only those of adapter and heads.

        Args:
            save_directory (`str` or `os.PathLike`): The directory. It is created.
            state_dict (`dict`, *optional*): Weights to save instead of the model's current ones.
            args, kwargs: As for any [`~transformers.PreTrainedModel`].
        """
        self.config.adapter = is_peft_model(self.backbone)
        given = state_dict or {}
        if self.config.adapter and kwargs.get("is_main_process", True):
            inner = {k.removeprefix("backbone."): v for k, v in given.items() if k.startswith("backbone.")}
            save_adapter(self.backbone, Path(save_directory) / ADAPTER_FOLDER, state_dict=inner or None)
        if self.saves_parts:
            own = {f"{name}.{k}": v for name, head in self._heads() for k, v in head.state_dict().items()}
            state_dict = own | {name: value for name, value in given.items() if name in own}
        super().save_pretrained(save_directory, *args, state_dict=state_dict, **kwargs)

    def load_adapter_and_head(self, path: str) -> None:
        """
        Load the weights of adapter and heads into this model.

        Args:
            path (`str`): Directory written by [`BackboneModel.save_pretrained`].
        """
        if is_peft_model(self.backbone):
            from peft import set_peft_model_state_dict

            weights = load_file(Path(path) / ADAPTER_FOLDER / "adapter_model.safetensors")
            set_peft_model_state_dict(self.backbone, weights, adapter_name=self.backbone.active_adapter)
        self._load_heads(Path(path) / "model.safetensors")

    def _load_heads(self, file: Any) -> None:
        weights = load_file(file)
        for name, head in self._heads():
            start = f"{name}."
            head.load_state_dict({k.removeprefix(start): v for k, v in weights.items() if k.startswith(start)})

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls,
        pretrained_model_name_or_path: Any,
        *args: Any,
        backbone: PreTrainedModel | None = None,
        is_trainable: bool = False,
        **kwargs: Any,
    ) -> Self:
        """
        Load a saved model.

        Args:
            pretrained_model_name_or_path (`str` or `os.PathLike`): Directory or Hub id.
            backbone ([`~transformers.PreTrainedModel`], *optional*): For a saved adapter or head, the model to put it
                on. The weights are shared, and the outputs of that model do not change. By default the backbone is
                loaded by its saved name.
            is_trainable (`bool`, *optional*, defaults to `False`): Whether a saved adapter or head is trained further.
            args, kwargs: As for any [`~transformers.PreTrainedModel`] (`quantization_config`, `device_map`, `dtype`,
                `revision`, `subfolder`, `trust_remote_code`, ...). `token`, `cache_dir` and the like are also used to
                load the backbone, whose own revision and folder were saved.

        Raises:
            `OSError`: There is no such model, or the backbone of an adapter or head is no longer where it was.
            `ValueError`: It is another kind of model; or `backbone` was given for a model that has one, has other
                sizes, or is required.
        """
        name = str(pretrained_model_name_or_path)
        config = kwargs.pop("config", None) or cls.load_config(name, **hub_arguments(kwargs))
        path, inside = locate(name, kwargs.pop("subfolder", None))
        kwargs |= inside
        config.load_code(kwargs.get("trust_remote_code", False), **hub_arguments(kwargs, place=False))
        if config.adapter or config.head_only:
            return cls._from_parts(path, config, backbone, is_trainable, kwargs)
        if backbone is not None:
            raise ValueError(f"`backbone` was given for a {cls.what} that was saved with a backbone of its own.")
        kwargs.setdefault("use_safetensors", True)
        kwargs.pop("trust_remote_code", None)
        model = super().from_pretrained(path, *args, config=config, **kwargs)
        use_exact_4bit_on_cpu(model)
        return model

    @classmethod
    def load_config(cls, name: str, **hub: Any) -> Any:
        """
        The config of a saved model.

        Args:
            name (`str`): Directory or Hub id.
            hub: `revision`, `subfolder`, `token`, `cache_dir` and the like.

        Raises:
            `OSError`: There is no such model.
            `ValueError`: It is another kind of model.
        """
        remedy = f"Create one from it with `{cls.__name__}.from_backbone`, and train it."
        return saved_config(cls.what, name, cls.config_class, remedy, **hub)

    @classmethod
    def _from_parts(cls, path: str, config: BackboneConfig, backbone: Any, is_trainable: bool, kwargs: dict) -> Any:
        hub = hub_arguments(kwargs)
        if backbone is not None:
            # An adapter of its own is put beside those of the backbone.
            base: Any = backbone_of(backbone) if config.head_only else headless(base_of(backbone))
            configs = base.config.get_text_config(), config.get_text_config()
            mine, its = ((c.hidden_size, c.vocab_size) for c in configs)
            if mine != its:
                raise ValueError(
                    f"{path!r} is for a model of hidden size {its[0]} with {its[1]} tokens; `backbone` has {mine[0]} "
                    f"and {mine[1]}."
                )
        elif config.backbone_name:
            init = {name: value for name, value in kwargs.items() if name not in ("revision", "subfolder")}
            base = cls._load_backbone(path, config, init)
        else:
            part = "an adapter" if config.adapter else "a head"
            what = f"`{cls.__name__}.from_pretrained(..., backbone=model)`"
            raise ValueError(f"{path!r} has {part} on a backbone whose name is unknown. Pass the backbone: {what}.")
        with adapters_unchanged(backbone) if backbone is not None else nullcontext():
            if config.adapter:
                name = "default" if backbone is None else VALUE_ADAPTER
                base = with_saved_adapter(base, path, ADAPTER_FOLDER, name=name, is_trainable=is_trainable, **hub)
            model = cls(config, base)
            model._load_heads(cached_file(path, "model.safetensors", **hub))
            model = model.to_device_of(base).eval()
            for _, head in model._heads():
                head.requires_grad_(is_trainable)
            if backbone is not None:
                model._share(backbone)
        return model

    @classmethod
    def _load_backbone(cls, path: str, config: BackboneConfig, kwargs: dict[str, Any]) -> Any:
        name = from_folders_above(config.backbone_name, path)
        try:
            return load_model(name, head="none", **{**kwargs, **config.backbone_place()})
        except OSError as error:
            what = f"`{cls.__name__}.from_pretrained(..., backbone=model)`"
            raise OSError(
                f"{path!r} was trained on the backbone {name!r}, which cannot be loaded: {error} If it is elsewhere, "
                f"load it yourself and pass it, {what}, or write its place into `backbone_name` in config.json."
            ) from error
