# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
The proxy: an actor that accepts or rejects candidate tokens, and a critic, on a frozen language model's hidden states.

Dimensions: M candidates, F features of a candidate.
"""

import hashlib
import logging
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel

from trl_ext.models.architecture import hidden_width
from trl_ext.models.load import hub_arguments, locate, saved_config
from trl_ext.models.properties import base_of
from trl_ext.upstream import get_config_model_id
from trl_ext.validation import check_at_least, check_value

from .decision_process import FEATURES, DecisionProcess
from .decoding.generate import generate


logger = logging.getLogger(__name__)

DIGEST_TOKENS = 8  # whose embeddings are part of a model's fingerprint


class ProxyConfig(PreTrainedConfig):
    r"""
    Configuration of a [`ProxyModel`].

    Args:
        llm_hidden_size (`int`, *optional*, defaults to `64`):
            Channels of the language model's last hidden state.
        layer_sizes (`list[int]`, *optional*):
            Widths of the hidden layers of actor and critic. By default [`default_layer_sizes`].
        critic (`bool`, *optional*, defaults to `True`):
            Whether there is a critic.
        initial_accept_rate (`float`, *optional*, defaults to `0.5`):
            Probability with which an untrained proxy accepts.
        process (`dict`, *optional*):
            Fields of the [`~trl_ext.methods.proxy_rlhf.decision_process.DecisionProcess`] that it was trained with.
        partwise_norm (`bool`, *optional*, defaults to `False`):
            Whether each part of the feature `"context"` has a LayerNorm of its own. [`ProxyModel.for_model`] sets it;
            proxies that were trained before have one for both.
        llm_name (`str`, *optional*, defaults to `""`):
            Hub id or directory of the language model.
        llm_digest (`str`, *optional*, defaults to `""`):
            Its [`llm_digest`]; `""` if unknown.
    """

    model_type = "trl_ext_proxy"

    llm_hidden_size: int = 64
    layer_sizes: list[int] | None = None
    critic: bool = True
    initial_accept_rate: float = 0.5
    process: dict | None = None
    partwise_norm: bool = False
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
        """The decision process that the proxy was trained with."""
        return DecisionProcess(**self.process or {})

    def check_size(self, size: int, name: str) -> None:
        """
        Check that a language model has the hidden size that the proxy was trained with.

        Args:
            size (`int`): Its hidden size.
            name (`str`): Its name.

        Raises:
            `ValueError`: It has another one; the message names both models.
        """
        if size != self.llm_hidden_size:
            raise ValueError(
                f"The proxy was trained on {_named(self.llm_name)}, whose hidden size is {self.llm_hidden_size}; that "
                f"of {_named(name)} is {size}. A proxy works only with models of the same hidden size."
            )

    def check_digest(
        self,
        digest: str,
        name: str,
        *,
        allow_other: bool,
        setting: str = "`allow_other_model=True` (`--proxy_allow_other_model`)",
    ) -> None:
        """
        Check that a language model is the one that the proxy was trained on.

        Args:
            digest (`str`): Its [`llm_digest`]; `""` if it is not known, and then nothing is checked.
            name (`str`): Its name.
            allow_other (`bool`): Log a warning, instead of raising an error, for another model.
            setting (`str`, *optional*): What to set for that, for the message.

        Raises:
            `ValueError`: It is another model; the message names both.
        """
        if not (self.llm_digest and digest) or set(digest.split("-")) & set(self.llm_digest.split("-")):
            return
        mine, its = _named(self.llm_name), _named(name)
        found = f"The proxy was trained on {mine} and is used with {its}, which has other weights"
        if not allow_other:
            raise ValueError(
                f"{found}. Use the model that it was trained on, or pass {setting} to try it with this one."
            )
        logger.warning("%s: what it learned may not transfer.", found)


def _named(name: str) -> str:
    return repr(name or "a model without a name")


def default_layer_sizes(hidden_size: int) -> list[int]:
    """MARA's 1024 and 256, or the language model's hidden size and a quarter of it if they are smaller."""
    return [min(1024, hidden_size), min(256, max(hidden_size // 4, 8))]


class ProxyOutput(NamedTuple):
    """
    Output of a [`ProxyModel`].

    Args:
        logits (`torch.Tensor` of shape `(M,)`): Logit of accepting each candidate, float32.
        values (`torch.Tensor` of shape `(M,)` or `None`): Expected future reward, float32; `None` without a critic.
    """

    logits: torch.Tensor
    values: torch.Tensor | None


class ProxyModel(PreTrainedModel):
    """
    Accepts or rejects the candidate tokens of a frozen language model.

    Create it with [`ProxyModel.for_model`] or [`ProxyModel.from_pretrained`]; save it, with its critic, with
    `save_pretrained` or `push_to_hub`. MARA: both networks are a LayerNorm followed by linear layers. Here the actor
    has one logit, which is equivalent to MARA's difference of two; and where the feature has two parts, each is
    normalised by itself ([`PartwiseLayerNorm`]).

    Args:
        config ([`ProxyConfig`]): The configuration.
    """

    config_class = ProxyConfig
    base_model_prefix = "proxy"
    main_input_name = "features"
    _no_split_modules: list[str] = []  # noqa: RUF012  transformers reads it from the class

    def __init__(self, config: ProxyConfig) -> None:
        super().__init__(config)
        self.actor = _network(config)
        self.critic = _network(config) if config.critic else None
        self.post_init()
        rate = config.initial_accept_rate
        with torch.no_grad():
            self.actor[-1].bias.fill_(math.log(rate / (1 - rate)))

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Orthogonal hidden layers and a small last one: a new proxy accepts all candidates about equally often."""
        networks = [n for n in (getattr(self, "actor", None), getattr(self, "critic", None)) if n is not None]
        if isinstance(module, nn.Linear) and not module.weight.is_meta:
            last = any(module is network[-1] for network in networks)
            nn.init.orthogonal_(module.weight, gain=0.01 if last else math.sqrt(2))
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm) and not module.weight.is_meta:
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)

    def get_input_embeddings(self) -> None:
        """There are none. FSDP and DeepSpeed call this."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> "ProxyModel":
        """
        Load a saved proxy, as for any [`~transformers.PreTrainedModel`], but from safetensors only.

        Raises:
            `OSError`: There is no such model.
            `ValueError`: It is another kind of model.
        """
        name = str(pretrained_model_name_or_path)
        cls.check_saved(name, **hub_arguments(kwargs))
        path, inside = locate(name, kwargs.pop("subfolder", None))
        kwargs.setdefault("use_safetensors", True)
        return super().from_pretrained(path, *args, **inside, **kwargs)  # type: ignore[no-any-return]

    @classmethod
    def check_saved(cls, name: str, **hub: Any) -> ProxyConfig:
        """
        Check that a saved model is a proxy, without loading it.

        Args:
            name (`str`): Directory or Hub id.
            hub: `revision`, `subfolder`, `token`, `cache_dir` and the like.

        Returns:
            [`ProxyConfig`]: Its config.

        Raises:
            `OSError`: There is no such model.
            `ValueError`: It is another kind of model.
        """
        remedy = "Create one for it with `ProxyModel.for_model`, and train it."
        return saved_config("proxy", name, ProxyConfig, remedy, **hub)  # type: ignore[return-value]

    @classmethod
    def for_model(cls, model: Any, process: DecisionProcess | None = None, **settings: Any) -> "ProxyModel":
        """
        Create a proxy for a language model, on its device.

        Args:
            model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]): The language model.
            process ([`~trl_ext.methods.proxy_rlhf.decision_process.DecisionProcess`], *optional*):
                The decision process. By default one with default settings.
            settings: Further fields of [`ProxyConfig`].
        """
        base: Any = base_of(model)
        config = ProxyConfig(
            llm_hidden_size=hidden_width(base.config.get_text_config()),
            process=(process or DecisionProcess()).as_dict(),
            partwise_norm=True,
            llm_name=llm_name(model),
            llm_digest=llm_digest(model),
            **settings,
        )
        proxy: ProxyModel = cls(config).to(base.device)
        return proxy

    def forward(self, features: torch.Tensor, **_: Any) -> ProxyOutput:
        """
        Args:
            features (`torch.Tensor` of shape `(..., F)`): Features of candidates, as
                [`~trl_ext.methods.proxy_rlhf.decoding.walk.Walk`] computes them.

        Returns:
            [`ProxyOutput`]
        """
        # The ratio of probabilities compares two forward passes: both are in float32, also under bfloat16 autocast.
        with torch.autocast(features.device.type, enabled=False):
            features = self._as_stored(features)
            values = None if self.critic is None else self.critic(features).squeeze(-1).float()
            return ProxyOutput(self.actor(features).squeeze(-1).float(), values)

    def accept_logits(self, features: torch.Tensor) -> torch.Tensor:
        """Logits (...) of accepting candidates with features (..., F), float32, without running the critic."""
        with torch.autocast(features.device.type, enabled=False):
            return self.actor(self._as_stored(features)).squeeze(-1).float()

    def _as_stored(self, features: torch.Tensor) -> torch.Tensor:
        """Round to bfloat16, as training stores features, so that every forward pass has the same inputs."""
        weight = self.actor[-1].weight
        return features.to(weight.device, torch.bfloat16).to(weight.dtype)

    def generate(self, model: Any, inputs: Any = None, **settings: Any) -> Any:
        """
        Generate completions with a language model whose candidate tokens this proxy accepts or rejects.

        See [`~trl_ext.methods.proxy_rlhf.decoding.generate.generate`] for the arguments.

        Raises:
            `ValueError`: The proxy was trained on another model (see [`ProxyModel.check_model`]), or an argument is
                invalid.
        """
        self.check_model(model, allow_other=settings.pop("allow_other_model", False))
        return generate(self, model, inputs, **settings)

    def check_model(self, model: Any, allow_other: bool = False) -> None:
        """
        Check that this proxy was trained on `model`.

        Args:
            model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]): A language model.
            allow_other (`bool`, *optional*, defaults to `False`): Log a warning, instead of raising an error, for
                another model of the same hidden size.

        Raises:
            `ValueError`: It was trained on another model; the message names both.
        """
        config: ProxyConfig = self.config
        config.check_size(hidden_width(base_of(model).config.get_text_config()), llm_name(model))
        config.check_digest(llm_digest(model), llm_name(model), allow_other=allow_other)


class PartwiseLayerNorm(nn.LayerNorm):
    """
    LayerNorm of each part of a feature by itself.

    Embeddings are often twenty times smaller than hidden states after the last norm. Normalised together with the
    state before it, a candidate would hardly be seen: the proxy of the quickstart then gained 0.8 of reward instead of
    5.5.

    Args:
        width (`int`): Channels of a part.
        parts (`int`): Parts of a feature. Each channel of each has a weight and a bias.
    """

    def __init__(self, width: int, parts: int) -> None:
        super().__init__(width * parts)
        self.parts = parts

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        each = input.unflatten(-1, (self.parts, -1))
        normed = nn.functional.layer_norm(each, each.shape[-1:], eps=self.eps).flatten(-2)
        return normed * self.weight + self.bias


def _network(config: ProxyConfig) -> nn.Sequential:
    parts = FEATURES[config.decision_process.feature]
    width, own = config.llm_hidden_size * parts, parts > 1 and config.partwise_norm
    layers: list[nn.Module] = [PartwiseLayerNorm(config.llm_hidden_size, parts) if own else nn.LayerNorm(width)]
    for size in config.layer_sizes or []:
        layers += [nn.Linear(width, size), nn.SiLU()]
        width = size
    return nn.Sequential(*layers, nn.Linear(width, 1))


def llm_name(model: Any) -> str:
    """Hub id or directory that a language model was loaded from, and whether it has an adapter."""
    name = str(get_config_model_id(base_of(model).config) or "")
    return f"{name} with an adapter" if hasattr(model, "peft_config") else name


def llm_digest(model: Any) -> str:
    """
    Short fingerprints of a language model in bfloat16 and in float16, joined by "-".

    Two copies of a model share one of them, whatever the precision of each. They cover the sizes, parts of the input
    embedding and the last norm, and the first weights of the active adapter. `""` if the weights are not available (on
    a meta device, or sharded by ZeRO-3).
    """
    base: Any = base_of(model)
    vectors = [p for n, p in base.named_parameters() if p.ndim == 1 and "lora_" not in n]
    active = [f".{name}." for name in getattr(model, "active_adapters", ())] if model is not base else []
    # Other models may have put adapters of their own on the weights.
    adapter = [p for n, p in model.named_parameters() if ".lora_" in n and any(name in n for name in active)][:2]
    parts = [base.get_input_embeddings().weight[:DIGEST_TOKENS], *vectors[-1:], *adapter]
    if any(part.is_meta or not part.numel() for part in parts):
        return ""
    return digest_of(base.config.get_text_config(), parts)


def digest_of(config: Any, parts: Sequence[torch.Tensor]) -> str:
    """
    The fingerprints of [`llm_digest`] from what they cover.

    Args:
        config ([`~transformers.PreTrainedConfig`]): Config of the text model, for its sizes.
        parts (`Sequence[torch.Tensor]`): Embeddings of the first `DIGEST_TOKENS` tokens, the last norm, and the first
            weights of the active adapter.
    """
    shape = [config.model_type, config.hidden_size, config.num_hidden_layers, config.vocab_size]
    digests = []
    for dtype in (torch.bfloat16, torch.float16):  # 4-bit and 8-bit models keep these tensors in one of them
        digest = hashlib.sha256(repr(shape).encode())
        for part in parts:
            rounded = part.detach().flatten()[:4096].to(dtype).float().cpu()
            digest.update(rounded.numpy().tobytes())
        digests.append(digest.hexdigest()[:16])
    return "-".join(digests)


AutoConfig.register(ProxyConfig.model_type, ProxyConfig, exist_ok=True)
AutoModel.register(ProxyConfig, ProxyModel, exist_ok=True)
