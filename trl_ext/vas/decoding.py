# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""A guided language model as something that answers prompts, and how the command line makes one."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, LogitsProcessor, PreTrainedModel, PreTrainedTokenizerBase

from ..models import is_peft_model, quantization_config_from
from ..policy import Policy
from ..steering import steered_policy
from ..tokens import load_tokenizer
from ..weights import RowWeights, parse_weights
from .generation import Beta, ValueAugmentedLogitsProcessor
from .model import ValueModel


def guided_policy(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    value_models: ValueModel | Mapping[str, ValueModel],
    beta: Beta,
    top_k: int = 20,
    *,
    name: str = "vas",
    batch_size: int = 64,
    progress: Callable[[int], Any] | None = None,
    extras: dict[str, Any] | None = None,
    series: str = "",
    **settings: Any,
) -> Policy:
    """
    The [`~trl_ext.policy.Policy`] of a language model under guidance.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]): The language model.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): Its tokenizer.
        value_models, beta, top_k: As for [`ValueAugmentedLogitsProcessor`]; one `beta` for all rows.
        name, batch_size, progress, extras, series: As for [`~trl_ext.steering.steered_policy`].
        settings: Passed to [`ValueAugmentedLogitsProcessor`].
    """

    def processors(ids_PT: torch.Tensor, mask_PT: torch.Tensor) -> list[LogitsProcessor]:
        return [
            ValueAugmentedLogitsProcessor(
                value_models, beta, top_k, attention_mask=mask_PT, tokenizer=tokenizer, **settings
            )
        ]

    processors(*torch.ones(2, 1, 1, dtype=torch.long))  # what is wrong is said before anything is generated
    return steered_policy(
        model,
        tokenizer,
        processors,
        name=name,
        batch_size=batch_size,
        progress=progress,
        extras=extras,
        series=series,
    )


@dataclass
class VASDecoding:
    """
    A frozen model guided by value models, as flags of `trl-ext evaluate` and `trl-ext generate`.

    Parameters:
        value_model_name_or_path (`list[str]`, *optional*):
            Directories or Hub ids of value models; `name=path` gives one a name for `beta`, by default it has that of
            its directory.
        beta (`list[str]`, *optional*, defaults to `["3"]`):
            Weights of the values, one policy each: a number where there is one head, or `head=weight,head=weight`.
        guide_top_k (`int`, *optional*, defaults to `20`):
            Candidates for each token.
        value_load_in_4bit (`bool`, *optional*, defaults to `False`):
            Load the value models in 4 bits.
        value_retokenize (`bool`, *optional*, defaults to `False`):
            Let value models with another vocabulary read the text in their own tokens, which is slow.
    """

    value_model_name_or_path: list[str] | None = field(
        default=None,
        metadata={"help": "Value models that guide the model: directories or Hub ids; name=path names one for beta."},
    )
    # 3 and 20 are the reference code's.
    beta: list[str] = field(
        default_factory=lambda: ["3"],
        metadata={"help": "Weights of the values, one policy each: 2, or head=weight,head=weight."},
    )
    guide_top_k: int = field(default=20, metadata={"help": "Tokens that the value models look at in each step."})
    value_load_in_4bit: bool = field(default=False, metadata={"help": "Load the value models in 4 bits."})
    value_retokenize: bool = field(
        default=False,
        metadata={"help": "Let value models with another vocabulary read the text in their own tokens; slow."},
    )

    @property
    def active(self) -> bool:
        """Whether there is a value model."""
        return bool(self.value_model_name_or_path)

    def check(self) -> None:
        """Raise `ValueError` for settings that cannot be."""
        if self.guide_top_k < 1:
            raise ValueError(f"`guide_top_k` must be at least 1, got {self.guide_top_k}.")
        if not self.beta:
            raise ValueError("`beta` is empty: give at least one weight.")
        for text in self.beta:
            weights = parse_weights(text, "beta")
            names = list(weights) if isinstance(weights, dict) else ["value"]
            RowWeights(weights, names, field="beta")  # NaN and infinity
        self._named_paths()

    def _named_paths(self) -> dict[str, str]:
        found: dict[str, str] = {}
        for text in self.value_model_name_or_path or []:
            name, equals, path = text.partition("=")
            if not equals or "/" in name:
                name, path = Path(text).name, text
            if name in found:
                raise ValueError(
                    f"`value_model_name_or_path` has two value models called {name!r}: name them, as in "
                    f"first={found[name]} second={path}."
                )
            found[name] = path
        return found

    def policies(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        name: str,
        batch_size: int,
        progress: Callable[[int], Any] | None = None,
    ) -> list[Policy]:
        """One policy a `beta`; see [`~trl_ext.policy.Decoding`]."""
        loaded = {key: self._load(path, model) for key, path in self._named_paths().items()}
        value_models: Any = {key: value for key, (value, _) in loaded.items()}
        tokenizers: Any = {key: other for key, (_, other) in loaded.items()}
        named = any(f"{key}=" in text for key in loaded for text in self.value_model_name_or_path or [])
        if len(loaded) == 1 and not named:  # then heads go by their own names
            [value_models], [tokenizers] = value_models.values(), tokenizers.values()
        series = f"{name} + {', '.join(loaded)}"
        found = []
        for text in self.beta:
            beta = parse_weights(text, "beta")
            found.append(
                guided_policy(
                    model,
                    tokenizer,
                    value_models,
                    beta,
                    self.guide_top_k,
                    name=f"{series}, beta {text}",
                    batch_size=batch_size,
                    progress=progress,
                    extras={"beta": beta, "top_k": self.guide_top_k},
                    series=series,
                    value_tokenizer=tokenizers,
                    retokenize=self.value_retokenize,
                )
            )
        return found

    def _load(self, path: str, model: PreTrainedModel) -> tuple[ValueModel, PreTrainedTokenizerBase | None]:
        kwargs: dict[str, Any] = {"dtype": model.dtype}  # the language model's, --dtype; heads stay in float32
        if self.value_load_in_4bit:
            from trl import ModelConfig

            kwargs = {"quantization_config": quantization_config_from(ModelConfig(load_in_4bit=True))}
        config = AutoConfig.from_pretrained(path, trust_remote_code=False)
        mine = getattr(config, "adapter", False) and config.backbone_name == model.config._name_or_path
        alone = len(self.value_model_name_or_path or []) == 1 and not is_peft_model(model)
        if getattr(config, "head_only", False) or (mine and alone):
            kwargs = {"backbone": model}  # it stands on the model that it guides: the weights are here already
        value_model = ValueModel.from_pretrained(path, **kwargs).eval()
        if "dtype" in kwargs:
            value_model = value_model.to(model.device)
        try:
            return value_model, load_tokenizer(path)
        except (OSError, ValueError):  # it was saved without; its digest of the vocabulary is compared
            return value_model, None
