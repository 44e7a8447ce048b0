# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Loads the value model to train: a saved one, a new one on a backbone, or an adapter and a head on the policy."""

import logging
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from trl_ext.models.dropout import disable_dropout
from trl_ext.models.load import hub_arguments, saved_config
from trl_ext.models.properties import is_peft_model, is_quantized, trains_weights_of
from trl_ext.models.tokenizers import load_tokenizer, vocabulary_mismatch
from trl_ext.training.model_loading import init_kwargs

from .config import VASConfig
from .value_model.backbones import add_adapter
from .value_model.config import ValueConfig
from .value_model.model import ValueModel


logger = logging.getLogger(__name__)

_OTHER_VOCABULARY = (
    "Values are learned for the language model's tokens: use a value model with its tokenizer (a smaller model of "
    "the same family), or an adapter and a head on the language model itself (`peft_config`, no `value_model`)."
)


def load_value_model(
    value_model: Any,
    policy: Any,
    tokenizer: PreTrainedTokenizerBase,
    heads: list[str],
    args: VASConfig,
    quantization_config: Any = None,
    peft_config: Any = None,
) -> ValueModel:
    """
    Load or create the value model to train, and check that it fits the settings.

    Args:
        value_model (`str`, [`~transformers.PreTrainedModel`], [`ValueModel`] or `None`): Hub id, directory or model:
            a value model, or a backbone for a new one. `None` creates a value model on the policy.
        policy ([`~transformers.PreTrainedModel`] or `None`): The frozen language model, if it is loaded.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): The language model's tokenizer.
        heads (`list[str]`): Names of the heads.
        args ([`VASConfig`]): The config: form, rank, discount and so on.
        quantization_config ([`~transformers.BitsAndBytesConfig`], *optional*): Quantisation of a model given by name.
        peft_config ([`~peft.PeftConfig`], *optional*): Adapter to add to the backbone.

    Returns:
        [`ValueModel`]

    Raises:
        `OSError`: There is no such model.
        `ValueError`: There is neither a value model nor a backbone for one, or it has another vocabulary, other heads
            or another form.
    """
    form: dict[str, Any] = {"form": args.value_form, "action_rank": args.action_rank, "num_atoms": args.atoms}
    if args.value_model_init_kwargs is not None and not isinstance(value_model, str):
        logger.warning("`value_model_init_kwargs` is ignored: no value model is loaded by name.")
    if value_model is None:
        if peft_config is None and args.value_form != "policy":
            raise ValueError(
                "There is no value model. Pass `value_model` (`value_model_name_or_path`: a small model with the "
                "language model's tokenizer), or `peft_config` (`--use_peft`) for an adapter and a head on the "
                "language model itself, or set `value_form='policy'` for a head on its hidden states."
            )
        value_model = ValueModel.on_policy(policy, heads, peft_config=peft_config, **form)
    else:
        if isinstance(value_model, str):
            kwargs = init_kwargs(args, quantization_config, "value_model_init_kwargs")
            _check_tokenizer(value_model, tokenizer, trust_remote_code=args.trust_remote_code, **hub_arguments(kwargs))
            value_model = _load_backbone(value_model, heads, kwargs, form, policy)
        elif not isinstance(value_model, ValueModel):
            value_model = _create(value_model, heads, form)
        if peft_config is not None:
            value_model.backbone = add_adapter(value_model.backbone, peft_config)
    _check_value_model(value_model, tokenizer, heads, args)
    if is_peft_model(value_model.backbone) and args.gradient_checkpointing:
        value_model.backbone.enable_input_require_grads()
    if args.disable_dropout:
        disable_dropout(value_model)
    value_model.config.record_tokenizer(tokenizer)
    value_model.config.gamma, value_model.config.lam = args.gamma, args.lam
    return value_model


def trained_on_policy(value_model: Any, policy: Any = None) -> list[torch.nn.Parameter]:
    """
    The parameters that are trained of a value model that shares the weights of a language model, which is frozen.

    Args:
        value_model ([`ValueModel`], [`~transformers.PreTrainedModel`] or anything else): There are none for others
            than the first.
        policy ([`~transformers.PreTrainedModel`] or anything else, *optional*): The language model.

    Raises:
        `ValueError`: The value model would train the language model's own weights.
    """
    if isinstance(value_model, ValueModel) and value_model.shares_policy:
        return [parameter for parameter in value_model.parameters() if parameter.requires_grad]
    are_models = isinstance(value_model, torch.nn.Module) and isinstance(policy, torch.nn.Module)
    if are_models and trains_weights_of(value_model, policy):
        raise ValueError(
            "The value model's backbone is the language model itself, which would be trained with it: put an adapter "
            "on it (`ValueModel.on_policy(model, peft_config=...)`), or load a second copy of it for the value model."
        )
    return []


def _check_tokenizer(name: str, tokenizer: PreTrainedTokenizerBase, **where: Any) -> None:
    """Raise `ValueError` if a model given by name has another vocabulary than the language model."""
    try:
        own = load_tokenizer(name, **where)
    except (OSError, ValueError):  # saved without a tokenizer: the size of its vocabulary is checked later
        return
    reason = vocabulary_mismatch(tokenizer, own, f"value model {name!r}")
    if reason:
        raise ValueError(f"{reason} {_OTHER_VOCABULARY}")


def _check_value_model(
    model: ValueModel, tokenizer: PreTrainedTokenizerBase, heads: list[str], args: VASConfig
) -> None:
    if list(model.head_names) != heads:
        raise ValueError(
            f"The value model has the heads {', '.join(map(repr, model.head_names))}, but the data and settings "
            f"ask for {', '.join(map(repr, heads))}. Set `heads` to those of the model, or train a new one."
        )
    if model.config.form != args.value_form:
        raise ValueError(
            f"The value model has the form {model.config.form!r}, but `value_form` is {args.value_form!r}: set it "
            "to that of the model, or train a new one."
        )
    if args.action_rank not in (VASConfig.action_rank, model.config.action_rank):
        raise ValueError(
            f"The value model has the rank {model.config.action_rank}, but `action_rank` is {args.action_rank}: "
            "remove it, or train a new one."
        )
    if model.config.num_atoms != args.atoms:
        found, asked = (f"{n} atoms" if n else "the mean alone" for n in (model.config.num_atoms, args.atoms))
        raise ValueError(
            f"The value model predicts {found}, but `value_head` and `num_atoms` ask for {asked}: set them to those "
            "of the model, or train a new one."
        )
    if is_quantized(model.backbone) and not model.saves_parts:
        raise ValueError(
            "A quantised value model cannot be trained without an adapter: pass `peft_config` (`--use_peft` on "
            "the command line)."
        )
    rows = model.get_input_embeddings().num_embeddings
    if rows < max(tokenizer.get_vocab().values()) + 1:
        raise ValueError(
            f"The value model has embeddings for {rows} tokens, the tokenizer has {len(tokenizer)}. "
            f"{_OTHER_VOCABULARY}"
        )


def _load_backbone(
    name: str, heads: list[str], kwargs: dict[str, Any], form: dict[str, Any], policy: Any
) -> ValueModel:
    """A saved value model to train further, or a new one on the backbone of that name."""
    where = {**hub_arguments(kwargs), "trust_remote_code": kwargs.get("trust_remote_code", False)}
    config = saved_config("value model", name, **where)
    if isinstance(config, ValueConfig):
        if config.head_only:
            return ValueModel.from_pretrained(name, is_trainable=True, backbone=policy, **where)
        return ValueModel.from_pretrained(name, is_trainable=True, **kwargs)
    return _create(name, heads, form, **kwargs)


def _create(backbone: Any, heads: list[str], form: dict[str, Any], **kwargs: Any) -> ValueModel:
    if form["form"] == "policy":
        raise ValueError(
            "`value_form='policy'` is a head on the language model's own hidden states, without another backbone: "
            "omit `value_model` (`value_model_name_or_path`), or pass a saved value model of this form; or set "
            "`value_form='action'`."
        )
    return ValueModel.from_backbone(backbone, heads, **form, **kwargs)
