# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""A language model guided by value models as a policy, and the flags of the command line for it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from trl_ext.decoding.guide_schedule import GuideSchedule
from trl_ext.decoding.scheduled_rows import GuidedTokens
from trl_ext.devices import default_device
from trl_ext.generation_settings import eos_token_ids
from trl_ext.guides.logits_processor import guide_schedule
from trl_ext.guides.weights import describe_weights, full_names, head_weights, parse_weights
from trl_ext.inference.guided import guide_weights, policy_with_processors
from trl_ext.inference.policy import Policy
from trl_ext.models.load import in_fast_dtype, quantization_config_from, same_source
from trl_ext.models.properties import context_length
from trl_ext.models.tokenizers import load_tokenizer
from trl_ext.upstream import get_config_model_id

from .decoding.logits_processor import Beta, ValueAugmentedLogitsProcessor
from .value_model.config import ValueConfig
from .value_model.distribution import Statistic
from .value_model.model import ValueModel
from .value_prompts import ValuePrompts


ValueModels: TypeAlias = ValueModel | dict[str, ValueModel]
ValueTokenizers: TypeAlias = PreTrainedTokenizerBase | dict[str, PreTrainedTokenizerBase | None] | None


def guided_policy(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    value_models: ValueModel | Mapping[str, ValueModel],
    beta: Beta,
    top_k: int = 20,
    *,
    name: str = "vas",
    batch_size: int = 64,
    extras: dict[str, Any] | None = None,
    series: str = "",
    guide_every: int | str = 1,
    guide_when: Mapping[str, Any] | None = None,
    **settings: Any,
) -> Policy:
    """
    The [`~trl_ext.inference.policy.Policy`] of a language model guided by value models.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]): The language model.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): Its tokenizer.
        value_models, beta, top_k: As for [`ValueAugmentedLogitsProcessor`]; one `beta` for all rows.
        name, batch_size, extras, series: As for [`~trl_ext.inference.guided.policy_with_processors`].
        guide_every, guide_when, settings: Passed to [`ValueAugmentedLogitsProcessor`].

    Raises:
        `ValueError`: As for [`ValueAugmentedLogitsProcessor`].
    """
    settings |= {"guide_every": guide_every, "guide_when": guide_when}
    settings["end_token_ids"] = eos_token_ids(model, tokenizer)

    models = value_models.values() if isinstance(value_models, Mapping) else [value_models]
    prompts = ValuePrompts(tokenizer) if any(each.config.value_prompt for each in models) else None

    def processor(mask_PT: torch.Tensor, value_prompts: list[list[int]] | None) -> ValueAugmentedLogitsProcessor:
        given = {"attention_mask": mask_PT, "value_prompts": value_prompts, "tokenizer": tokenizer}
        return ValueAugmentedLogitsProcessor(value_models, beta, top_k, **given, **settings)

    def processors(ids_PT: torch.Tensor, mask_PT: torch.Tensor) -> list[ValueAugmentedLogitsProcessor]:
        return [processor(mask_PT, None if prompts is None else prompts.of(ids_PT, mask_PT))]

    def change(weights: dict[str, float]) -> Policy:
        return guided_policy(
            model,
            tokenizer,
            value_models,
            weights,
            top_k,
            name=f"{series or name}, beta {describe_weights(weights)}",
            batch_size=batch_size,
            extras=(extras or {}) | {"beta": weights},
            series=series,
            **settings,
        )

    # raises errors before anything is generated
    checked = processor(torch.ones(1, 1, dtype=torch.long), None if prompts is None else [[0]])
    contexts = [context_length(model), *(guide.context_length for guide in checked.guides)]
    return policy_with_processors(
        model,
        tokenizer,
        processors,
        name=name,
        batch_size=batch_size,
        extras=extras,
        series=series,
        method="VAS",
        context=min((length for length in contexts if length), default=0),
        weights=guide_weights(checked, change),
        guided=None if checked.scheduled is None else GuidedTokens(),
        sees_row=None if prompts is None else prompts.add_row,
    )


@dataclass
class VASDecoding:
    """
    Value models that guide a frozen model, as flags of `trl-ext evaluate` and `trl-ext generate`.

    Parameters:
        value_model_name_or_path (`list[str]`, *optional*):
            Directories or Hub ids of value models. `name=path` sets the name that `beta` uses; by default it is the
            name of the directory.
        beta (`list[str]`, *optional*, defaults to `["3"]`):
            Weights of the values, one policy each: a number if there is one head, or `head=weight,head=weight`.
        guide_top_k (`int`, *optional*, defaults to `20`):
            Number of candidates per token.
        guide_every (`str`, *optional*, defaults to `"1"`):
            The values guide every n-th new token, or the tokens that begin a `word` or a `sentence`.
        guide_when (`dict`, *optional*):
            Further conditions, all of which have to be met: `entropy`, `margin` and `random`; see
            [`~trl_ext.decoding.guide_schedule.GuideSchedule`].
        value_statistic (`str`, *optional*, defaults to `"mean"`):
            What guides of the distribution of the reward R that a categorical head predicts: `mean`, `log_mean_exp=c`
            (log E exp(c R) / c), or `quantile=c`. With `log_mean_exp` and c = beta, log E exp(beta R) is added to the
            log-probabilities.
        value_load_in_4bit (`bool`, *optional*, defaults to `False`):
            Whether to load the value models in 4 bits.
        value_retokenize (`bool`, *optional*, defaults to `False`):
            Whether value models of another vocabulary tokenize the text with their own tokenizer, which is slow.
        value_trust_remote_code (`bool`, *optional*, defaults to `False`):
            Whether to run code that comes with the value models' backbones and tokenizers.
    """

    value_model_name_or_path: list[str] | None = field(
        default=None,
        metadata={"help": "Value models that guide the model: directories or Hub ids; name=path names one for beta."},
    )
    # 3 and 20 are the reference code's.
    beta: list[str] = field(
        default_factory=lambda: ["3"],
        metadata={"help": "Weights of the values: a number or head=weight,head=weight. Each makes one policy."},
    )
    guide_top_k: int = field(
        default=20, metadata={"help": "Number of likeliest tokens that the values re-rank at each step."}
    )
    guide_every: str = field(
        default="1",
        metadata={"help": "Guide every n-th token, or the tokens that begin a `word` or a `sentence`."},
    )
    guide_when: dict[str, Any] | str | None = field(
        default=None,
        metadata={
            "help": 'Guide only there: {"entropy": x}, {"margin": x} or {"random": share}; JSON on a command line.'
        },
    )
    value_statistic: str = field(
        default="mean",
        metadata={"help": "Of a categorical head: `mean`, `log_mean_exp=c` or `quantile=c` of the return guides."},
    )
    value_load_in_4bit: bool = field(default=False, metadata={"help": "Whether to load the value models in 4 bits."})
    value_retokenize: bool = field(
        default=False,
        metadata={
            "help": "Whether value models of another vocabulary tokenize the text with their own tokenizer; slow."
        },
    )
    value_trust_remote_code: bool = field(
        default=False,
        metadata={"help": "Whether to run code that comes with the value models' backbones and tokenizers."},
    )

    @property
    def active(self) -> bool:
        """Whether there are value models."""
        return bool(self.value_model_name_or_path)

    @property
    def schedule(self) -> GuideSchedule:
        """Which tokens are guided."""
        return guide_schedule(self.guide_every, self.guide_when)

    @property
    def schedule_arguments(self) -> dict[str, Any]:
        """The schedule as arguments of [`ValueAugmentedLogitsProcessor`]."""
        conditions = self.schedule.changes()
        return {"guide_every": conditions.pop("every", 1), "guide_when": conditions or None}

    def check(self) -> None:
        """
        Raise `ValueError` for settings that are out of range or contradict each other, or for another kind of model
        than a value model, and `OSError` if there is none.
        """
        if self.guide_top_k < 1:
            raise ValueError(f"`guide_top_k` must be at least 1, got {self.guide_top_k}.")
        _ = self.schedule
        Statistic.read(self.value_statistic)
        if not self.beta:
            raise ValueError("`beta` is empty: give at least one weight.")
        betas = [parse_weights(text, "beta") for text in self.beta]
        for weights in betas:
            head_weights(weights, list(weights) if isinstance(weights, dict) else ["value"], "beta")
        heads = self._saved_heads()
        for weights in betas if heads else ():
            head_weights(weights, heads, "beta")

    def policies(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        name: str,
        batch_size: int,
    ) -> list[Policy]:
        """One policy per `beta`; see [`~trl_ext.inference.policy.Decoding`]."""
        value_models, tokenizers = self.load_value_models(model)
        series = ", ".join(filter(None, [f"{name} + {', '.join(self.named_paths())}", str(self.schedule)]))
        policies = []
        for text in self.beta:
            beta = parse_weights(text, "beta")
            policy = guided_policy(
                model,
                tokenizer,
                value_models,
                beta,
                self.guide_top_k,
                name=f"{series}, beta {text}",
                batch_size=batch_size,
                extras={"beta": beta, "top_k": self.guide_top_k, **self.schedule.changes()},
                series=series,
                value_tokenizer=tokenizers,
                retokenize=self.value_retokenize,
                **self.schedule_arguments,
            )
            policies.append(policy)
        return policies

    def named_paths(self) -> dict[str, str]:
        """
        Directories or Hub ids of the value models by name.

        Raises:
            `ValueError`: Two value models have the same name.
        """
        paths: dict[str, str] = {}
        for text in self.value_model_name_or_path or []:
            name, equals, path = text.partition("=")
            if not equals or "/" in name:
                name, path = Path(text).name, text
            if name in paths:
                raise ValueError(
                    f"`value_model_name_or_path` has two value models called {name!r}: name them, as in "
                    f"first={paths[name]} second={path}."
                )
            paths[name] = path
        return paths

    def load_value_models(self, model: PreTrainedModel | None) -> tuple[ValueModels, ValueTokenizers]:
        """
        Load the value models and their tokenizers, as [`ValueAugmentedLogitsProcessor`] takes them.

        Args:
            model ([`~transformers.PreTrainedModel`] or `None`): The language model that they guide, if it is loaded.

        Returns:
            Value models by name, or the only one if it was given no name; their tokenizers likewise, `None` for a
            value model that was saved without one.

        Raises:
            `ValueError` or `OSError`: A value model cannot be loaded, or needs the language model.
        """
        value_models, tokenizers = {}, {}
        for name, path in self.named_paths().items():
            value_models[name], tokenizers[name] = load_value_model(
                path,
                model,
                load_in_4bit=self.value_load_in_4bit,
                trust_remote_code=self.value_trust_remote_code,
                statistic=self.value_statistic,
            )
        if self._single_unnamed():
            return next(iter(value_models.values())), next(iter(tokenizers.values()))
        return value_models, tokenizers

    def _single_unnamed(self) -> bool:
        """Whether there is one value model without a given name, whose heads have their own names."""
        return self.value_model_name_or_path == [*self.named_paths().values()][:1]

    def _saved_heads(self) -> Sequence[str]:
        """Full names of the heads, from the saved configs."""
        heads: list[str] = []
        for name, path in self.named_paths().items():
            config: ValueConfig = ValueModel.load_config(path)
            heads += full_names("" if self._single_unnamed() else name, config.heads or ())
        return heads


def load_value_model(
    path: str,
    model: PreTrainedModel | None,
    *,
    load_in_4bit: bool = False,
    trust_remote_code: bool = False,
    statistic: str = "mean",
) -> tuple[ValueModel, PreTrainedTokenizerBase | None]:
    """
    Load a value model to guide a language model, and its tokenizer.

    Args:
        path (`str`): Directory or Hub id.
        model ([`~transformers.PreTrainedModel`] or `None`): The language model, if it is loaded.
        load_in_4bit, trust_remote_code (`bool`, *optional*, default to `False`): As in [`VASDecoding`].
        statistic (`str`, *optional*, defaults to `"mean"`): Its `value_statistic`.

    Returns:
        The value model, and its tokenizer or `None` if it was saved without one.

    Raises:
        `ValueError` or `OSError`: It cannot be loaded, or needs the language model.
    """
    # Backbones have the language model's dtype (`--dtype`), or their own beside a server; heads stay in float32.
    kwargs: dict[str, Any] = {"dtype": "auto" if model is None else model.dtype}
    if load_in_4bit:
        from trl import ModelConfig

        kwargs = {"quantization_config": quantization_config_from(ModelConfig(load_in_4bit=True))}
    kwargs["trust_remote_code"] = trust_remote_code
    config: ValueConfig = ValueModel.load_config(path)
    if model is None and config.head_only:
        raise ValueError(
            f"The value model {path!r} reads the hidden states of the model that it guides, and those of a "
            "server's model are not available: train a value model with a backbone of its own (`trl-ext vas "
            "--value_model_name_or_path ...`)."
        )
    if model is not None:
        on_this_model = config.adapter and same_source(config.backbone_name, get_config_model_id(model.config))
        if config.head_only or on_this_model:
            # share the language model's weights
            kwargs = {"backbone": model, "trust_remote_code": trust_remote_code}
    value_model = ValueModel.from_pretrained(path, **kwargs).eval()
    if "dtype" in kwargs:  # neither quantized nor on the language model's weights
        if model is None:
            value_model = in_fast_dtype(value_model, default_device()).to(default_device())
        else:
            value_model = value_model.to(model.device)
    value_model.statistic = Statistic.read(statistic)
    return value_model, value_tokenizer_of(path, trust_remote_code)


def value_tokenizer_of(path: str, trust_remote_code: bool = False) -> PreTrainedTokenizerBase | None:
    """The tokenizer of a saved value model; `None` without one: the digest of its vocabulary is then compared."""
    try:
        return load_tokenizer(path, trust_remote_code=trust_remote_code)
    except (OSError, ValueError):
        return None
