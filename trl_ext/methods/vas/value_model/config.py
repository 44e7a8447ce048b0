# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Configs of value models."""

from typing import Any

from transformers import AutoConfig, PreTrainedConfig, PreTrainedTokenizerBase

from trl_ext.models.tokenizers import vocabulary_digest

from ..config import FORMS


class BackboneConfig(PreTrainedConfig):
    r"""
    Configuration of a [`BackboneModel`].

    Args:
        backbone_config (`dict` or [`~transformers.PreTrainedConfig`], *optional*):
            Configuration of the backbone.
        backbone_name (`str`, *optional*, defaults to `""`):
            Model that the backbone came from.
        adapter (`bool`, *optional*, defaults to `False`):
            Whether the saved weights are those of an adapter (in the folder `adapter`) and the head.
        head_only (`bool`, *optional*, defaults to `False`):
            Whether the backbone is another model's as it is, so that the saved weights are those of the head.
    """

    backbone_config: dict | PreTrainedConfig | None = None
    backbone_name: str = ""
    adapter: bool = False
    head_only: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        if isinstance(self.backbone_config, dict):
            self.backbone_config = AutoConfig.for_model(**self.backbone_config)
        super().__post_init__(**kwargs)

    def get_text_config(self, *args: Any, **kwargs: Any) -> PreTrainedConfig:
        """The backbone's: what asks for a vocabulary or a width means those."""
        config = self.backbone_config
        return config.get_text_config(*args, **kwargs) if isinstance(config, PreTrainedConfig) else self


class ValueConfig(BackboneConfig):
    r"""
    Configuration of a [`ValueModel`].

    Args:
        heads (`list[str]`, *optional*, defaults to `["reward"]`):
            Names of the heads, one a reward.
        form (`str`, *optional*, defaults to `"state"`):
            `"state"`: V(s + a), from the state after a token. `"action"`: Q(s, a), from the state before it.
            `"policy"`: Q(s, a), from the language model's own state.
        action_rank (`int`, *optional*, defaults to `256`):
            Rank of the part of Q(s, a) that depends on a.
        reward_mean (`list[float]`, *optional*, defaults to zeros):
            What was subtracted from the rewards of each head before they were learned.
        reward_std (`list[float]`, *optional*, defaults to ones):
            What they were divided by: a value of 1 is this much reward.
        gamma (`float`, *optional*, defaults to `1.0`):
            Discount of the targets that the values were trained on.
        lam (`float`, *optional*, defaults to `0.95`):
            lambda of these targets.
        tokenizer_name (`str`, *optional*, defaults to `""`):
            Tokenizer that the values were trained with.
        vocabulary (`str`, *optional*, defaults to `""`):
            Its [`~trl_ext.models.tokenizers.vocabulary_digest`]; `""` if it is not known.
        kwargs: Those of [`~trl_ext.methods.vas.value_model.config.BackboneConfig`].
    """

    model_type = "trl_ext_value"

    heads: list[str] | None = None
    form: str = "state"
    action_rank: int = 256
    reward_mean: list[float] | None = None
    reward_std: list[float] | None = None
    gamma: float = 1.0
    lam: float = 0.95
    tokenizer_name: str = ""
    vocabulary: str = ""
    pad_token_id: int | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        self.heads = list(self.heads or ["reward"])
        if len(set(self.heads)) < len(self.heads):
            raise ValueError(f"The heads of a value model must have different names, got {self.heads}.")
        if self.form not in FORMS:
            raise ValueError(f"The form of a value model must be one of {', '.join(FORMS)}, got {self.form!r}.")
        if self.form != "state" and self.action_rank < 1:
            raise ValueError(f"`action_rank` must be at least 1, got {self.action_rank}.")
        self.head_only = self.form == "policy"
        self.reward_mean = self.reward_mean or [0.0] * len(self.heads)
        self.reward_std = self.reward_std or [1.0] * len(self.heads)
        super().__post_init__(**kwargs)

    def record_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Remember whose token ids the values are about."""
        self.tokenizer_name = str(getattr(tokenizer, "name_or_path", "") or "")
        self.vocabulary = vocabulary_digest(tokenizer)
        self.pad_token_id = tokenizer.pad_token_id
