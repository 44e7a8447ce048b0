# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Value models as a kind of guide in guide files."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from trl_ext.models.load import resolve_model_path

from .decoding.value_guide import ValueGuide, value_vocabulary_mismatch
from .policies import load_value_model, value_tokenizer_of
from .value_model.distribution import Statistic
from .value_model.model import ValueModel


@dataclass(kw_only=True)
class ValueModelKind:
    """
    A value model; see [`~trl_ext.methods.vas.decoding.value_guide.ValueGuide`].

    Parameters:
        model (`str`):
            Directory or Hub id.
        statistic (`str`, *optional*, defaults to `"mean"`):
            As `value_statistic` in [`~trl_ext.methods.vas.policies.VASDecoding`].
        load_in_4bit, retokenize, trust_remote_code (`bool`, *optional*, default to `False`):
            As `value_load_in_4bit` and so on in [`~trl_ext.methods.vas.policies.VASDecoding`].
    """

    kind: ClassVar[str] = "value_model"
    one_head: ClassVar[bool] = False

    model: str = field(metadata={"help": "Value model: directory or Hub id."})
    statistic: str = field(
        default="mean",
        metadata={"help": "Of a categorical head: `mean`, `log_mean_exp=c` or `quantile=c` of the return."},
    )
    load_in_4bit: bool = field(default=False, metadata={"help": "Whether to load it in 4 bits."})
    retokenize: bool = field(
        default=False, metadata={"help": "Whether a value model of another vocabulary reads the text; slow."}
    )
    trust_remote_code: bool = field(default=False, metadata={"help": "Whether to run code that comes with it."})

    @property
    def default_name(self) -> str:
        """That of the directory."""
        return Path(self.model).name

    def check(self) -> None:
        """Raise an `OSError` if the model is written like a path and is no directory."""
        resolve_model_path(self.model)
        Statistic.read(self.statistic)

    def load(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str) -> ValueGuide:
        """See [`~trl_ext.guides.kinds.GuideKind.load`]."""
        value_model, value_tokenizer = load_value_model(
            self.model, model, load_in_4bit=self.load_in_4bit, trust_remote_code=self.trust_remote_code,
            statistic=self.statistic,
        )  # fmt: skip
        return ValueGuide(
            value_model, name, tokenizer=tokenizer, value_tokenizer=value_tokenizer, retokenize=self.retokenize
        )

    # ------------------------------------------- beside an engine: see [`~trl_ext.guides.kinds.EngineGuideKind`]

    def saved_heads(self) -> Sequence[str]:
        """Names of the value model's heads."""
        return tuple(ValueModel.load_config(self.model).heads)

    def load_beside_engine(
        self, tokenizer: PreTrainedTokenizerBase | None, name: str, dtype: torch.dtype, device: torch.device
    ) -> ValueGuide:
        """See [`~trl_ext.guides.kinds.EngineGuideKind.load_beside_engine`]."""
        if ValueModel.load_config(self.model).head_only:
            model = ValueModel.heads_from_pretrained(self.model).heads_to(device)
        else:
            where: dict[str, Any] = {"device_map": None, "trust_remote_code": self.trust_remote_code}
            model = ValueModel.from_pretrained(self.model, dtype=dtype, **where).eval().to(device)
        model.statistic = Statistic.read(self.statistic)
        own = value_tokenizer_of(self.model, self.trust_remote_code)
        differs = tokenizer and value_vocabulary_mismatch(tokenizer, own or model, name, may_retokenize=False)
        if differs:
            raise ValueError(differs)
        return ValueGuide(model, name, tokenizer=tokenizer, value_tokenizer=own)
