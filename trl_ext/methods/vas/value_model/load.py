# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""The value model that is trained: saved before, begun on another model, or an adapter and a head on the policy."""

from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from trl_ext.models.load import is_peft_model, is_quantized, saved_config
from trl_ext.models.tokenizers import load_tokenizer, vocabulary_mismatch
from trl_ext.training.model_loading import init_kwargs
from trl_ext.upstream import disable_dropout_in_model

from ..config import VASConfig
from ..head_weights import full_names, head_weights, parse_weights
from .backbones import add_adapter
from .config import ValueConfig
from .model import ValueModel


_OTHER_VOCABULARY = (
    "Values are learned for the language model's tokens: take a value model with its tokenizer (a smaller model of "
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
    The value model as it goes into training.

    Args:
        value_model (`str`, [`~transformers.PreTrainedModel`], [`ValueModel`] or `None`): What it is made of; `None`
            for an adapter and a head on the policy.
        policy ([`~transformers.PreTrainedModel`] or `None`): The frozen language model, where it is loaded.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): The language model's.
        heads (`list[str]`): Names of the rewards that it learns the value of.
        args ([`VASConfig`]): Form, adapter rank, discount and dtype.
        quantization_config ([`~transformers.BitsAndBytesConfig`], *optional*): Of a model given by name.
        peft_config ([`~peft.PeftConfig`], *optional*): Adapter on its backbone.

    Raises:
        `OSError`: There is no model of that name.
        `ValueError`: There is nothing to make one of, or it has another vocabulary, other heads or another form.
    """
    form: dict[str, Any] = {"form": args.value_form, "action_rank": args.action_rank}
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
            _check_tokenizer(value_model, tokenizer, args)
            kwargs = init_kwargs(args, args.value_model_init_kwargs, quantization_config)
            value_model = _load_backbone(value_model, heads, kwargs, form, policy)
        elif not isinstance(value_model, ValueModel):
            value_model = _begin(value_model, heads, form)
        if peft_config is not None:
            value_model.backbone = add_adapter(value_model.backbone, peft_config)
    _check_value_model(value_model, tokenizer, heads, args)
    if is_peft_model(value_model.backbone) and args.gradient_checkpointing:
        value_model.backbone.enable_input_require_grads()
    if args.disable_dropout:
        disable_dropout_in_model(value_model)
    value_model.config.record_tokenizer(tokenizer)
    value_model.config.gamma, value_model.config.lam = args.gamma, args.lam
    return value_model


def check_betas(betas: Sequence[str], value_models: Mapping[str, str]) -> None:
    """
    Check weights of heads against the configs of saved value models, before anything is loaded.

    Args:
        betas (`Sequence[str]`): Weights, as they are written on the command line.
        value_models (`Mapping[str, str]`): Directories or Hub ids by name; `""` for one whose heads go by their own.

    Raises:
        `ValueError`: A weight is no number, or of a head that does not exist.
    """
    heads: list[str] = []
    for name, path in value_models.items():
        try:
            config = saved_config("value model", path)
        except (OSError, ValueError):  # said where it is loaded
            config = None
        if not isinstance(config, ValueConfig):
            heads = []
            break
        heads += full_names(name, config.heads or ())
    for text in betas:
        weights = parse_weights(text, "beta")
        head_weights(weights, heads or (list(weights) if isinstance(weights, dict) else ["value"]))


def _check_tokenizer(name: str, tokenizer: PreTrainedTokenizerBase, args: VASConfig) -> None:
    """A value model given by name must read the language model's tokens."""
    try:
        own = load_tokenizer(name, trust_remote_code=args.trust_remote_code)
    except (OSError, ValueError):  # saved without one: what can be seen of the model itself is checked later
        return
    fault = vocabulary_mismatch(tokenizer, own, f"value model {name!r}")
    if fault:
        raise ValueError(f"{fault} {_OTHER_VOCABULARY}")


def _check_value_model(
    model: ValueModel, tokenizer: PreTrainedTokenizerBase, heads: list[str], args: VASConfig
) -> None:
    if list(model.head_names) != heads:
        raise ValueError(
            f"The value model has the heads {', '.join(map(repr, model.head_names))}, but the data and settings "
            f"ask for {', '.join(map(repr, heads))}. Set `heads` to those of the model, or begin a new one."
        )
    if model.config.form != args.value_form:
        raise ValueError(
            f"The value model has the form {model.config.form!r}, but `value_form` is {args.value_form!r}: set it "
            "to that of the model, or begin a new one."
        )
    if is_quantized(model.backbone) and not model.saves_parts:
        raise ValueError(
            "A quantised value model cannot be trained without an adapter: pass `peft_config` (`--use_peft` on "
            "the command line)."
        )
    rows = model.get_input_embeddings().num_embeddings
    if rows < max(tokenizer.get_vocab().values()) + 1:
        raise ValueError(
            f"The value model knows {rows} tokens, the tokenizer has {len(tokenizer)}. {_OTHER_VOCABULARY}"
        )


def _load_backbone(
    name: str, heads: list[str], kwargs: dict[str, Any], form: dict[str, Any], policy: Any
) -> ValueModel:
    """A saved value model to train further, or a new one on the backbone of that name."""
    where = {key: kwargs[key] for key in ("revision", "trust_remote_code") if key in kwargs}
    config = saved_config("value model", name, **where)
    if isinstance(config, ValueConfig):
        if config.head_only:
            return ValueModel.from_pretrained(name, is_trainable=True, backbone=policy, **where)
        return ValueModel.from_pretrained(name, is_trainable=True, **kwargs)
    return _begin(name, heads, form, **kwargs)


def _begin(backbone: Any, heads: list[str], form: dict[str, Any], **kwargs: Any) -> ValueModel:
    if form["form"] == "policy":
        raise ValueError(
            "`value_form='policy'` is a head on the language model's own states, and has no other backbone: leave out "
            "`value_model` (`value_model_name_or_path`) or name a saved value model of this form there; or set "
            "`value_form='action'`."
        )
    return ValueModel.from_backbone(backbone, heads, **form, **kwargs)
