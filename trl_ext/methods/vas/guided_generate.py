# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Guided decoding in one call, which `generate(custom_generate=...)` of a published value model uses."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from transformers import LogitsProcessorList, PreTrainedModel

from trl_ext.generation_settings import eos_token_ids

from .decoding.logits_processor import Beta, ValueAugmentedLogitsProcessor
from .policies import load_value_model
from .value_model.model import ValueModel


AnyValueModel = str | os.PathLike[str] | ValueModel


def guided_generate(
    model: PreTrainedModel,
    *,
    value_model: AnyValueModel | Mapping[str, AnyValueModel] | None = None,
    beta: Beta = 3.0,
    guide_top_k: int = 20,
    guide_every: int | str = 1,
    guide_when: Mapping[str, Any] | None = None,
    value_prompts: Sequence[Sequence[int]] | None = None,
    **kwargs: Any,
) -> Any:
    """
    `model.generate` guided by value models.

    A value model that was saved with this package has the code for `model.generate(**inputs, custom_generate=REPO,
    trust_remote_code=True, value_model=REPO, beta=2.0)`, which calls this function.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            The language model.
        value_model (`str`, [`ValueModel`] or `dict` of those):
            Directory or Hub id of a value model, which is loaded for this call, or the value model itself, for many
            calls. Several in a dictionary by name.
        beta, guide_top_k, guide_every, guide_when, value_prompts:
            As `beta`, `top_k`, `guide_every`, `guide_when` and `value_prompts` of [`ValueAugmentedLogitsProcessor`]:
            `top_k` is a setting of `generate`'s own.
        kwargs:
            Arguments of `generate`. Its `attention_mask` and `tokenizer`, if they are given, are the guide's too.

    Returns:
        What `generate` returns.

    Raises:
        `ValueError`: There is no value model, or what [`ValueAugmentedLogitsProcessor`] raises.
        `OSError`: A value model is not found.
    """
    if value_model is None:
        raise ValueError("`value_model` is missing: pass a value model, its directory, or its Hub id.")
    tokenizer, processors = kwargs.get("tokenizer"), kwargs.pop("logits_processor", None)
    if isinstance(value_model, Mapping):
        models: Any = {name: _value_model(each, model) for name, each in value_model.items()}
    else:
        models = _value_model(value_model, model)
    guide = ValueAugmentedLogitsProcessor(
        models,
        beta,
        guide_top_k,
        attention_mask=kwargs.get("attention_mask"),
        tokenizer=tokenizer,
        pad_token_id=kwargs.get("pad_token_id"),
        guide_every=guide_every,
        guide_when=guide_when,
        value_prompts=value_prompts,
        end_token_ids=eos_token_ids(model, tokenizer) if tokenizer is not None else (),
    )
    return model.generate(**kwargs, logits_processor=LogitsProcessorList([*(processors or ()), guide]))


def _value_model(given: AnyValueModel, model: PreTrainedModel) -> ValueModel:
    return given if isinstance(given, ValueModel) else load_value_model(os.fspath(given), model)[0]
