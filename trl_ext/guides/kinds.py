# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
The kinds of guides that a guide file may have, with their settings. Methods add kinds of their own.

A kind is a dataclass. Its fields are the keys of a guide in the file, beside `kind`, `name` and `weight`; those
without a default are required. Its `load` makes the guide.
"""

import inspect
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl import ModelConfig

from trl_ext.method import discover, import_class
from trl_ext.models.load import (
    adapter_config,
    hub_arguments,
    load_model,
    quantization_config_from,
    resolve_model_path,
    saved_config,
)
from trl_ext.models.tokenizers import load_tokenizer
from trl_ext.rewards.classifiers import load_classifier
from trl_ext.rewards.functions import import_function

from .base_guide import BaseGuide, FunctionGuide
from .classifier_guide import OUTPUTS, ClassifierGuide
from .language_model_guide import LanguageModelGuide


logger = logging.getLogger(__name__)


class GuideKind(Protocol):
    """
    The settings of one guide; a dataclass whose fields have a `help` in their metadata.

    The class variable `kind` is its name in files, and `one_head` says whether each guide of the kind has one head.
    """

    kind: ClassVar[str]
    one_head: ClassVar[bool]

    @property
    def default_name(self) -> str:
        """Name of the guide where the file gives none."""
        ...

    def check(self) -> None:
        """
        Raise a `ValueError` or an `OSError` for settings that are out of range, contradict each other, or name
        something that is not there. Nothing is loaded.
        """

    def load(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str) -> BaseGuide:
        """
        Load the guide.

        Args:
            model ([`~transformers.PreTrainedModel`]): The language model that it guides.
            tokenizer ([`~transformers.PreTrainedTokenizerBase`]): Its tokenizer.
            name (`str`): Name of the guide in messages.

        Raises:
            `ValueError` or `OSError`: It cannot be loaded, or does not fit the language model.
        """
        ...


class EngineGuideKind(GuideKind, Protocol):
    """A kind of guide that also works beside an engine, which has the language model and batches continuously."""

    def saved_heads(self) -> Sequence[str]:
        """
        Names of the guide's heads. Nothing is loaded but a config.

        Raises:
            `ValueError` or `OSError`: There is no such guide.
        """
        ...

    def load_beside_engine(
        self, tokenizer: PreTrainedTokenizerBase | None, name: str, dtype: torch.dtype, device: torch.device
    ) -> BaseGuide:
        """
        Load the guide.

        Args:
            tokenizer ([`~transformers.PreTrainedTokenizerBase`] or `None`): The language model's tokenizer, if known.
            name (`str`): Name of the guide in messages.
            dtype (`torch.dtype`): Dtype of its weights.
            device (`torch.device`): Device of the engine.

        Raises:
            `ValueError` or `OSError`: It cannot be loaded, or does not fit the language model.
        """
        ...


@dataclass(kw_only=True)
class LoadedGuide:
    """How the models of a guide are loaded."""

    dtype: str = field(default="auto", metadata={"help": "Dtype of the weights. auto: that of the checkpoint."})
    load_in_4bit: bool = field(default=False, metadata={"help": "Whether to load the model in 4 bits."})
    revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit on the Hub."})
    trust_remote_code: bool = field(default=False, metadata={"help": "Whether to run code that comes with the model."})

    def check_loading(self) -> None:
        """Raise a `ValueError` for a dtype that does not exist, or that 4 bits replace."""
        if self.dtype != "auto" and not getattr(getattr(torch, self.dtype, None), "is_floating_point", False):
            raise ValueError(f"`dtype` must be auto, float32, bfloat16 or float16, got {self.dtype!r}")
        if self.dtype != "auto" and self.load_in_4bit:
            raise ValueError("`dtype` has no effect with `load_in_4bit`: remove one of them")

    @property
    def where(self) -> dict[str, Any]:
        """Arguments of loaders: where a model is, and whether its code is run."""
        found: dict[str, Any] = {"trust_remote_code": self.trust_remote_code}
        return found if self.revision is None else found | {"revision": self.revision}

    def load_model(self, name: str, llm: PreTrainedModel, head: str) -> Any:
        """
        Load a model beside the language model.

        Args:
            name (`str`): Directory or Hub id.
            llm ([`~transformers.PreTrainedModel`]): The language model, on whose device it is put.
            head (`str`): As for [`~trl_ext.models.load.load_model`].

        Raises:
            `ValueError` or `OSError`: There is no such model, or it is of another kind.
        """
        options = self.where if self.load_in_4bit else self.where | {"dtype": self.dtype}
        if head == "sequence_classification":
            model, device = load_classifier(name, options | {"load_in_4bit": self.load_in_4bit}, llm.device)
            return model if device is None else model.to(device)
        if self.load_in_4bit:
            quantized = quantization_config_from(ModelConfig(load_in_4bit=True))
            return load_model(name, head=head, quantization_config=quantized, **options)
        return load_model(name, head=head, device=llm.device, device_map=None, **options).to(llm.device)

    def load_tokenizer(self, name: str) -> PreTrainedTokenizerBase | None:
        """The tokenizer of a model; `None`, with a warning, if it was saved without one."""
        try:
            return load_tokenizer(name, **self.where)
        except (OSError, ValueError) as error:
            logger.warning(
                "The tokenizer of %r cannot be loaded: its vocabulary is not compared with the language model's (%s).",
                name,
                error,
            )
            return None


@dataclass(kw_only=True)
class ClassifierKind(LoadedGuide):
    """
    A sequence classifier, reward model or token classifier; see [`~trl_ext.guides.classifier_guide.ClassifierGuide`].

    Parameters:
        model (`str`):
            Directory or Hub id.
        label (`str`, *optional*, defaults to `""`), output (`str`, *optional*, defaults to `"logit"`), retokenize
            (`bool`, *optional*, defaults to `False`): As for [`~trl_ext.guides.classifier_guide.ClassifierGuide`].
        kwargs: Those of [`LoadedGuide`].
    """

    kind: ClassVar[str] = "classifier"
    one_head: ClassVar[bool] = True

    model: str = field(metadata={"help": "Classifier or reward model: directory or Hub id."})
    label: str = field(default="", metadata={"help": "Label that is scored, by name or number."})
    output: str = field(default="logit", metadata={"help": "What of the label is scored.", "choices": list(OUTPUTS)})
    retokenize: bool = field(
        default=False,
        metadata={"help": "Whether an encoder, or a model of another vocabulary, reads the text; slow."},
    )

    @property
    def default_name(self) -> str:
        """That of the directory."""
        return Path(self.model).name

    def check(self) -> None:
        """Raise an `OSError` if the model is written like a path and is no directory, a `ValueError` for its dtype."""
        self.check_loading()
        resolve_model_path(self.model)

    def load(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str) -> BaseGuide:
        """See [`GuideKind.load`]."""
        of_tokens = False
        if adapter_config(self.model, **hub_arguments(self.where)) is None:
            saved = saved_config("classifier", self.model, **self.where)
            of_tokens = any(name.endswith("ForTokenClassification") for name in saved.architectures or ())
        head = "token_classification" if of_tokens else "sequence_classification"
        return ClassifierGuide(
            self.load_model(self.model, model, head),
            name=name,
            label=self.label,
            output=self.output,
            tokenizer=tokenizer,
            own_tokenizer=self.load_tokenizer(self.model),
            retokenize=self.retokenize,
        )


@dataclass(kw_only=True)
class LanguageModelKind(LoadedGuide):
    """
    One or two language models; see [`~trl_ext.guides.language_model_guide.LanguageModelGuide`].

    Parameters:
        expert, anti_expert (`str`, *optional*, default to `""`):
            Directories or Hub ids of the models whose log-probabilities are added and subtracted. One is needed.
        kwargs: Those of [`LoadedGuide`].
    """

    kind: ClassVar[str] = "language_model"
    one_head: ClassVar[bool] = True

    expert: str = field(default="", metadata={"help": "Language model whose log-probabilities are added."})
    anti_expert: str = field(default="", metadata={"help": "Language model whose log-probabilities are subtracted."})

    @property
    def default_name(self) -> str:
        """That of the expert's directory, or of the anti-expert's."""
        return Path(self.expert or self.anti_expert).name

    def check(self) -> None:
        """Raise a `ValueError` without a model or for its dtype, an `OSError` for a path that is no directory."""
        self.check_loading()
        if not self.expert and not self.anti_expert:
            raise ValueError("a language_model needs an `expert`, an `anti_expert` or both")
        for path in filter(None, (self.expert, self.anti_expert)):
            resolve_model_path(path)

    def load(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str) -> BaseGuide:
        """See [`GuideKind.load`]."""
        loaded = [
            self.load_model(path, model, "causal_lm") if path else None for path in (self.expert, self.anti_expert)
        ]
        tokenizers = [self.load_tokenizer(path) if path else None for path in (self.expert, self.anti_expert)]
        return LanguageModelGuide(
            *loaded,
            name=name,
            tokenizer=tokenizer,
            expert_tokenizer=tokenizers[0],
            anti_expert_tokenizer=tokenizers[1],
        )


@dataclass(kw_only=True)
class FunctionKind:
    """
    A Python function; see [`~trl_ext.guides.base_guide.FunctionGuide`].

    Parameters:
        function (`str`):
            Import path (`"my_package.my_module.score"`) or file (`"my_guides.py:score"`).
        arguments (`dict[str, Any]`, *optional*):
            Keyword arguments that it is called with, beside the context and the candidates.
    """

    kind: ClassVar[str] = "function"
    one_head: ClassVar[bool] = True

    function: str = field(metadata={"help": "Import path of the function, or file.py:function."})
    arguments: dict[str, Any] | None = field(default=None, metadata={"help": "Keyword arguments for it."})

    @property
    def default_name(self) -> str:
        """That of the function."""
        return re.split("[.:]", self.function)[-1]

    def check(self) -> None:
        """Raise a `ValueError` if there is no such function, or it does not take the arguments."""
        function = import_function(self.function, "guide")
        try:
            inspect.signature(function).bind(None, None, **(self.arguments or {}))
        except TypeError as error:
            raise ValueError(
                f"{self.function} cannot be called with a context, candidates and the `arguments` "
                f"{self.arguments or {}}: {error}"
            ) from error

    def load(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str) -> BaseGuide:
        """See [`GuideKind.load`]."""
        return FunctionGuide(partial(import_function(self.function, "guide"), **(self.arguments or {})), name)


def guide_kinds() -> dict[str, type[GuideKind]]:
    """
    The kinds of guides by name: those of this folder, and those that installed methods declare (`guide`).

    Raises:
        `ImportError`: The kind of a method cannot be imported.
    """
    kinds: dict[str, Any] = {each.kind: each for each in (ClassifierKind, LanguageModelKind, FunctionKind)}
    for found in discover().methods.values():
        if found.method.guide:
            cls: Any = import_class(found.method.guide)
            kinds.setdefault(cls.kind, cls)
    return kinds
