# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
The proxy: two small networks on a frozen model's hidden states, one that accepts or rejects and one that values.

M candidates, D hidden size of the language model, F features of a candidate.
"""

import hashlib
import logging
import math
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel

from trl_ext.models.load import base_of, loading_error, resolve_model_path
from trl_ext.upstream import get_config_model_id
from trl_ext.validation import check_at_least, check_value

from .decision_process import FEATURES, DecisionProcess
from .decoding.generate import generate


logger = logging.getLogger(__name__)


class ProxyConfig(PreTrainedConfig):
    r"""
    Configuration of a [`ProxyModel`].

    Args:
        llm_hidden_size (`int`, *optional*, defaults to `64`):
            Hidden size of the language model.
        layer_sizes (`list[int]`, *optional*):
            Widths of the hidden layers of actor and critic. By default [`default_layer_sizes`] of the hidden size.
        critic (`bool`, *optional*, defaults to `True`):
            Whether there is a critic.
        initial_accept_rate (`float`, *optional*, defaults to `0.5`):
            Probability with which an untrained proxy accepts.
        process (`dict`, *optional*):
            Fields of the [`~trl_ext.methods.proxy_rlhf.decision_process.DecisionProcess`] that it was trained in.
        llm_name (`str`, *optional*, defaults to `""`):
            The language model.
        llm_digest (`str`, *optional*, defaults to `""`):
            Its [`llm_digest`]; `""` if it is not known.
    """

    model_type = "trl_ext_proxy"

    llm_hidden_size: int = 64
    layer_sizes: list[int] | None = None
    critic: bool = True
    initial_accept_rate: float = 0.5
    process: dict | None = None
    llm_name: str = ""
    llm_digest: str = ""

    def __post_init__(self, **kwargs: Any) -> None:
        sizes: list[int] = check_value("layer_sizes", self.layer_sizes or [], list[int])
        self.layer_sizes = sizes or default_layer_sizes(self.llm_hidden_size)
        for i, size in enumerate(self.layer_sizes):
            check_at_least(f"layer_sizes[{i}]", size, 1)
        if not 0 < self.initial_accept_rate < 1:
            raise ValueError(f"`initial_accept_rate` must be between 0 and 1, got {self.initial_accept_rate}.")
        self.process = DecisionProcess(**self.process or {}).as_dict()
        super().__post_init__(**kwargs)

    @property
    def decision_process(self) -> DecisionProcess:
        """The process that the proxy was trained in."""
        return DecisionProcess(**self.process or {})


def default_layer_sizes(hidden_size: int) -> list[int]:
    """MARA's 1024 and 256, or for a narrow language model its width and a quarter of that."""
    return [min(1024, hidden_size), min(256, max(hidden_size // 4, 8))]


class ProxyOutput(NamedTuple):
    """
    What a proxy says about candidates.

    Args:
        logits (`torch.Tensor` of shape (M,)): Logit of accepting each, float32.
        values (`torch.Tensor` of shape (M,) or `None`): The expected reward from there on, float32.
    """

    logits: torch.Tensor
    values: torch.Tensor | None


class ProxyModel(PreTrainedModel):
    """
    Accepts or rejects the candidates of a frozen language model.

    Made by [`ProxyModel.for_model`] or [`ProxyModel.from_pretrained`]; saved by `save_pretrained`, pushed by
    `push_to_hub`, with its critic. MARA: both networks are LayerNorm, then linear layers; here the actor ends in one
    logit, which says the same as the difference of two.

    Args:
        config ([`ProxyConfig`]): Its configuration.
    """

    config_class = ProxyConfig
    base_model_prefix = "proxy"
    main_input_name = "features"
    _no_split_modules: list[str] = []  # noqa: RUF012  transformers reads it from the class

    def __init__(self, config: ProxyConfig) -> None:
        super().__init__(config)
        width = config.llm_hidden_size * FEATURES[config.decision_process.feature]
        self.actor = _network(width, config.layer_sizes or [])
        self.critic = _network(width, config.layer_sizes or []) if config.critic else None
        self.post_init()
        rate = config.initial_accept_rate
        with torch.no_grad():
            self.actor[-1].bias.fill_(math.log(rate / (1 - rate)))

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Orthogonal hidden layers, a small last one: a new proxy accepts everything alike, a new critic says 0."""
        networks = [n for n in (getattr(self, "actor", None), getattr(self, "critic", None)) if n is not None]
        if isinstance(module, nn.Linear) and not module.weight.is_meta:
            last = any(module is network[-1] for network in networks)
            nn.init.orthogonal_(module.weight, gain=0.01 if last else math.sqrt(2))
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm) and not module.weight.is_meta:
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)

    def get_input_embeddings(self) -> None:
        """There are none, which those who divide a model among processes ask about."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> "ProxyModel":
        """
        As for any [`~transformers.PreTrainedModel`], from safetensors alone.

        Raises:
            `OSError`: There is no such model.
            `ValueError`: What is saved there is another kind of model.
        """
        hub = {name: kwargs[name] for name in ("revision", "token", "cache_dir", "subfolder") if name in kwargs}
        path = str(pretrained_model_name_or_path)
        try:
            saved, _ = PreTrainedConfig.get_config_dict(resolve_model_path(path), **hub)
        except OSError as error:
            raise loading_error("proxy", path, error) from error
        if saved.get("model_type") != ProxyConfig.model_type:
            raise ValueError(
                f"{path!r} holds a model of type {saved.get('model_type')!r} and no "
                "proxy. Make one for it with `ProxyModel.for_model`, and train it."
            )
        kwargs.setdefault("use_safetensors", True)
        return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)  # type: ignore[no-any-return]

    @classmethod
    def for_model(cls, model: Any, process: DecisionProcess | None = None, **settings: Any) -> "ProxyModel":
        """
        A new proxy for a language model, on its device.

        Args:
            model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]): The language model.
            process ([`~trl_ext.methods.proxy_rlhf.decision_process.DecisionProcess`], *optional*):
                Decision process of the proxy.
            settings: Further fields of [`ProxyConfig`].
        """
        base: Any = base_of(model)
        config = ProxyConfig(
            llm_hidden_size=base.config.get_text_config().hidden_size,
            process=(process or DecisionProcess()).as_dict(),
            llm_name=llm_name(model),
            llm_digest=llm_digest(model),
            **settings,
        )
        proxy: ProxyModel = cls(config).to(base.device)
        return proxy

    def forward(self, features: torch.Tensor, **_: Any) -> ProxyOutput:
        """
        Args:
            features (`torch.Tensor` of shape (..., F)): What [`~trl_ext.methods.proxy_rlhf.decoding.walk.Walk`] sees
                of candidates.

        Returns:
            [`ProxyOutput`]
        """
        # Ratios of probabilities compare two passes: both are float32, whatever else computes in bfloat16.
        with torch.autocast(features.device.type, enabled=False):
            features = self._as_kept(features)
            values = None if self.critic is None else self.critic(features).squeeze(-1).float()
            return ProxyOutput(self.actor(features).squeeze(-1).float(), values)

    def accept_logits(self, features: torch.Tensor) -> torch.Tensor:
        """Logits (...) of accepting candidates with features (..., F), float32; the critic is not asked."""
        with torch.autocast(features.device.type, enabled=False):
            return self.actor(self._as_kept(features)).squeeze(-1).float()

    def _as_kept(self, features: torch.Tensor) -> torch.Tensor:
        """Rounded to bfloat16, in which training keeps them, so that every pass sees the same numbers."""
        weight = self.actor[-1].weight
        return features.to(weight.device, torch.bfloat16).to(weight.dtype)

    def generate(self, model: Any, inputs: Any = None, **settings: Any) -> Any:
        """
        Answer prompts with a language model whose tokens this proxy accepts or rejects.

        See [`~trl_ext.methods.proxy_rlhf.decoding.generate.generate`] for the arguments.

        Raises:
            `ValueError`: The proxy was trained on another model (see [`ProxyModel.check_model`]), or an argument.
        """
        self.check_model(model, allow_other=settings.pop("allow_other_model", False))
        return generate(self, model, inputs, **settings)

    def check_model(self, model: Any, allow_other: bool = False) -> None:
        """
        Check that `model` is the one that this proxy was trained on.

        Args:
            model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]): A language model.
            allow_other (`bool`, *optional*, defaults to `False`): Warn, rather than raise, of another model with
                hidden states of the same size.

        Raises:
            `ValueError`: It is another; names both.
        """
        config: ProxyConfig = self.config
        size = base_of(model).config.get_text_config().hidden_size
        mine, its = config.llm_name or "a model without a name", llm_name(model) or "a model without a name"
        if size != config.llm_hidden_size:
            raise ValueError(
                f"The proxy was trained on {mine!r}, whose hidden states have {config.llm_hidden_size} dimensions; "
                f"those of {its!r} have {size}. A proxy works with models of the same hidden size only."
            )
        digest = llm_digest(model)
        if not config.llm_digest or not digest or digest == config.llm_digest:
            return
        found = f"The proxy was trained on {mine!r} and is used with {its!r}, which has other weights"
        if not allow_other:
            raise ValueError(
                f"{found}. Use the model that it was trained on, or pass `allow_other_model=True` "
                "(`--proxy_allow_other_model`) to see how far it carries over."
            )
        logger.warning("%s: what it learned of hidden states may not hold for them.", found)


def _network(width: int, sizes: list[int]) -> nn.Sequential:
    layers: list[nn.Module] = [nn.LayerNorm(width)]
    for size in sizes:
        layers += [nn.Linear(width, size), nn.SiLU()]
        width = size
    return nn.Sequential(*layers, nn.Linear(width, 1))


def llm_name(model: Any) -> str:
    """What a language model was loaded from, an adapter's own name included."""
    name = str(get_config_model_id(base_of(model).config) or "")
    return f"{name} with an adapter" if hasattr(model, "peft_config") else name


def llm_digest(model: Any) -> str:
    """
    A short fingerprint of a language model, the same in every precision and for every copy.

    It covers the shape, some of the input embedding and of the last norm, and an adapter's first weights; `""` where
    the weights are not here (a meta device, ZeRO-3).
    """
    base: Any = base_of(model)
    config = base.config.get_text_config()
    shape = [config.model_type, config.hidden_size, config.num_hidden_layers, config.vocab_size]
    vectors = [p for n, p in base.named_parameters() if p.ndim == 1 and "lora_" not in n]
    adapter = [p for n, p in model.named_parameters() if ".lora_" in n][:2] if model is not base else []
    parts = [base.get_input_embeddings().weight[:8], *vectors[-1:], *adapter]
    if any(part.is_meta or not part.numel() for part in parts):
        return ""
    digest = hashlib.sha256(repr(shape).encode())
    for part in parts:
        # 4-bit and 8-bit models keep these tensors, in a lower precision: bfloat16 is what all of them share.
        rounded = part.detach().flatten()[:4096].to(torch.bfloat16).float().cpu()
        digest.update(rounded.numpy().tobytes())
    return digest.hexdigest()[:16]


AutoConfig.register(ProxyConfig.model_type, ProxyConfig, exist_ok=True)
AutoModel.register(ProxyConfig, ProxyModel, exist_ok=True)
