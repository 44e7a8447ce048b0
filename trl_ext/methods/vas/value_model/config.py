# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Configuration of value models."""

from typing import Any

from transformers import AutoConfig, PreTrainedConfig, PreTrainedTokenizerBase

from trl_ext.vocabulary import vocabulary_digest


FORMS = ("state", "action", "policy")  # inputs of a value model; see [`ValueConfig`]


class BackboneConfig(PreTrainedConfig):
    r"""
    Configuration of a [`BackboneModel`].

    Args:
        backbone_config (`dict` or [`~transformers.PreTrainedConfig`], *optional*):
            Configuration of the backbone.
        backbone_name (`str`, *optional*, defaults to `""`):
            Hub id or directory that the backbone was loaded from.
        backbone_revision, backbone_subfolder (`str`, *optional*, default to `""`):
            Its revision on the Hub, and the folder in it.
        adapter (`bool`, *optional*, defaults to `False`):
            Whether only an adapter (in the folder `adapter`) and the heads are saved.
        head_only (`bool`, *optional*, defaults to `False`):
            Whether the backbone is another model's, unchanged, so that only the heads are saved.
    """

    backbone_config: dict | PreTrainedConfig | None = None
    backbone_name: str = ""
    backbone_revision: str = ""
    backbone_subfolder: str = ""
    adapter: bool = False
    head_only: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        if isinstance(self.backbone_config, dict):
            try:
                self.backbone_config = AutoConfig.for_model(**self.backbone_config)
            except ValueError:
                if not self.backbone_config.get("auto_map"):
                    raise  # otherwise its class is among the backbone's own code, see `load_code`
        super().__post_init__(**kwargs)

    def load_code(self, trust_remote_code: bool, **hub: Any) -> None:
        """
        Load the code of a backbone that comes with its own, from where the backbone was loaded.

        Args:
            trust_remote_code (`bool`): Whether to run it. Otherwise transformers' own code is used, where it has some.
            hub: `token`, `cache_dir` and the like.

        Raises:
            `ValueError`: The backbone has code of its own, which may not be run.
        """
        saved: Any = self.backbone_config
        saved = saved.to_dict() if isinstance(saved, PreTrainedConfig) else saved
        if not (saved and saved.get("auto_map")) or (not trust_remote_code and saved is not self.backbone_config):
            return
        if not trust_remote_code:
            raise ValueError(
                f"The backbone {self.backbone_name!r} has code of its own: pass `trust_remote_code` to run it "
                "(`--value_trust_remote_code` on the command line)."
            )
        hub |= self.backbone_place() | {"trust_remote_code": trust_remote_code}
        config = AutoConfig.from_pretrained(self.backbone_name, **hub)
        config = type(config).from_dict(saved)
        config.name_or_path = self.backbone_name  # where `auto_map` is looked up
        self.backbone_config = config

    def backbone_place(self) -> dict[str, str]:
        """The arguments of `from_pretrained` that say where the backbone is, beside its name."""
        place = {"revision": self.backbone_revision, "subfolder": self.backbone_subfolder}
        return {name: value for name, value in place.items() if value}

    def get_text_config(self, *args: Any, **kwargs: Any) -> PreTrainedConfig:
        """The backbone's text config, which has the vocabulary size and the hidden size."""
        config = self.backbone_config
        return config.get_text_config(*args, **kwargs) if isinstance(config, PreTrainedConfig) else self


def is_remote_code(config: Any) -> bool:
    """Whether the class of a config is among the code of a model, rather than transformers' own."""
    return type(config).__module__.partition(".")[0] == "transformers_modules"


class ValueConfig(BackboneConfig):
    r"""
    Configuration of a [`ValueModel`].

    Args:
        heads (`list[str]`, *optional*, defaults to `["reward"]`):
            Names of the heads, one per reward.
        form (`str`, *optional*, defaults to `"state"`):
            `"state"`: V(s + a), from the hidden state after a token. `"action"`: Q(s, a), from the hidden state
            before it. `"policy"`: Q(s, a), from the language model's own hidden state.
        action_rank (`int`, *optional*, defaults to `256`):
            Rank of the term of Q(s, a) that depends on the token a.
        num_atoms (`int`, *optional*, defaults to `0`):
            Numbers over which each head predicts the distribution of the return. `0`: it predicts the mean alone.
        low, high (`list[float]`, *optional*):
            The lowest and the highest of these numbers for each head, in the units of training.
        reward_mean (`list[float]`, *optional*, defaults to zeros):
            Mean that was subtracted from the rewards of each head before training.
        reward_std (`list[float]`, *optional*, defaults to ones):
            Standard deviation that they were divided by: a value of 1 corresponds to this much reward.
        observed_mean, observed_std (`list[float]`, *optional*):
            Mean and standard deviation of the rewards of each head in the training data, whether they were normalised
            or not.
        gamma (`float`, *optional*, defaults to `1.0`):
            Discount of the training targets.
        lam (`float`, *optional*, defaults to `0.95`):
            lambda of the TD(lambda) targets.
        tokenizer_name (`str`, *optional*, defaults to `""`):
            Tokenizer that the value model was trained with.
        vocabulary (`str`, *optional*, defaults to `""`):
            Its [`~trl_ext.vocabulary.vocabulary_digest`]; `""` if unknown.
        vocabulary_count (`int`, *optional*, defaults to `0`):
            Number of its tokens, so that a tokenizer with further ones is recognised; `0` if unknown.
        value_prompt (`bool`, *optional*, defaults to `False`):
            Whether it was trained on prompts of its own, the column `value_prompt`.
        kwargs: Those of [`~trl_ext.methods.vas.value_model.config.BackboneConfig`].
    """

    model_type = "trl_ext_value"

    heads: list[str] | None = None
    form: str = "state"
    action_rank: int = 256
    num_atoms: int = 0
    low: list[float] | None = None
    high: list[float] | None = None
    reward_mean: list[float] | None = None
    reward_std: list[float] | None = None
    observed_mean: list[float] | None = None
    observed_std: list[float] | None = None
    gamma: float = 1.0
    lam: float = 0.95
    tokenizer_name: str = ""
    vocabulary: str = ""
    vocabulary_count: int = 0
    value_prompt: bool = False
    pad_token_id: int | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        self.heads = list(self.heads or ["reward"])
        if len(set(self.heads)) < len(self.heads):
            raise ValueError(f"The heads of a value model must have different names, got {self.heads}.")
        if self.form not in FORMS:
            raise ValueError(f"The form of a value model must be one of {', '.join(FORMS)}, got {self.form!r}.")
        if self.form != "state" and self.action_rank < 1:
            raise ValueError(f"`action_rank` must be at least 1, got {self.action_rank}.")
        if self.num_atoms and (self.num_atoms < 2 or self.form != "state"):
            raise ValueError(
                f"A categorical head has at least 2 atoms, and the form 'state'; got {self.num_atoms} and "
                f"{self.form!r}."
            )
        self.head_only = self.form == "policy"
        self.reward_mean = self.reward_mean or [0.0] * len(self.heads)
        self.reward_std = self.reward_std or [1.0] * len(self.heads)
        super().__post_init__(**kwargs)

    def record_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Record the tokenizer whose token ids the values refer to."""
        self.tokenizer_name = str(getattr(tokenizer, "name_or_path", "") or "")
        self.vocabulary, self.vocabulary_count = vocabulary_digest(tokenizer), len(tokenizer)
        self.pad_token_id = tokenizer.pad_token_id
