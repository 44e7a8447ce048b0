# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""The models that a command line names: loading them as policies, finding the base of each."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import ModelCard
from transformers import AutoConfig, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from trl_ext.data.completion import Completion
from trl_ext.devices import default_device
from trl_ext.endpoint.vllm_server import VLLMServer
from trl_ext.evaluation.evaluate import Evaluation, evaluate
from trl_ext.generation.generate import usual_batch_size
from trl_ext.generation.vllm_settings import VLLMSettings, stopping_at
from trl_ext.generation_settings import GenerationSettings
from trl_ext.inference.policy import Decoding, Policy, model_policy
from trl_ext.models.adapters import changes_base
from trl_ext.models.load import adapter_base, adapter_config, loading_error, same_source
from trl_ext.models.properties import context_length
from trl_ext.models.tokenizers import same_vocabulary

from .arguments import LoadingArguments


logger = logging.getLogger(__name__)


def load_policy(name: str, loading: LoadingArguments, *, batch_size: int = 64) -> Policy:
    """
    Load a model with its tokenizer, as a [`~trl_ext.inference.policy.Policy`].

    Raises:
        `OSError`: There is no such model.
    """
    tokenizer = load_model_tokenizer(name, loading)
    try:
        model = loading.load(name, loading.model_revision)
    except OSError as error:
        raise loading_error("model", name, error) from error
    return model_policy(model, tokenizer, name=name, batch_size=batch_size)


def load_guided(
    name: str,
    loading: LoadingArguments,
    decodings: Sequence[Decoding],
    *,
    batch_size: int,
    served_name: str = "",
) -> tuple[Policy, list[Policy]]:
    """
    Load a model and what guides it, to be served.

    Args:
        name (`str`): Hub id, directory or LoRA adapter directory.
        loading ([`~trl_ext.cli.arguments.LoadingArguments`]): How it is loaded.
        decodings (`Sequence[Decoding]`): Guidance of the model, already checked.
        batch_size (`int`): Sequences to generate at once.
        served_name (`str`, *optional*, defaults to `""`): Its name in requests. By default that of [`public_name`].

    Returns:
        `tuple[Policy, list[Policy]]`: The model without guidance, and with each of its guides.

    Raises:
        `ValueError` or `OSError`: Something cannot be loaded, or does not fit the model.
    """
    plain = replace(load_policy(name, loading, batch_size=batch_size), name=served_name or public_name(name))
    guided = [
        policy
        for decoding in decodings
        for policy in decoding.policies(plain.model, plain.tokenizer, name=plain.name, batch_size=batch_size)  # type: ignore[arg-type]
    ]
    return plain, guided


def public_name(name: str) -> str:
    """Name of a model for visitors: the Hub id, or the directory's name, which does not show where it is."""
    return Path(name).resolve().name if Path(name).is_dir() else name


def load_model_tokenizer(name: str, loading: LoadingArguments) -> PreTrainedTokenizerBase:
    """
    Load the tokenizer of a model.

    Raises:
        `OSError`: There is no such model.
    """
    try:
        return loading.load_tokenizer(name, loading.model_revision)
    except OSError as error:
        raise loading_error("model", name, error) from error


def load_policies(
    names: Sequence[str],
    loading: LoadingArguments,
    settings: GenerationSettings,
    batch_size: int,
) -> list[Policy]:
    """
    Models to sample from, by transformers or, if `loading` has vLLM's settings and they ask for it, by vLLM.

    Raises:
        `OSError`: There is no such model.
        `ValueError`: vLLM is to load several models, an adapter, or a model in another form than it was saved in.
        `ImportError`: vLLM is not installed.
    """
    if not isinstance(loading, VLLMSettings) or not loading.use_vllm:
        return [load_policy(name, loading, batch_size=batch_size) for name in names]
    if len(names) != 1:
        raise ValueError("--use_vllm is for one model at a time: sample with one, then from its output with the next.")
    return [_vllm_policy(names[0], loading, settings, loading, batch_size)]


def _vllm_policy(
    name: str,
    loading: LoadingArguments,
    settings: GenerationSettings,
    vllm: VLLMSettings,
    batch_size: int,
) -> Policy:
    if adapter_base(name) is not None:
        raise ValueError(
            f"{name!r} is an adapter, and vLLM needs a full model: merge it first (`merge_and_unload` of PEFT)."
        )
    if vllm.vllm_enable_sleep_mode:
        raise ValueError("vllm_enable_sleep_mode is for training, which sends vLLM its weights again: leave it out.")
    if vllm.vllm_tensor_parallel_size > 1:
        raise ValueError(
            "vllm_tensor_parallel_size is for several processes, and trl-ext sample is one: for a model that one GPU "
            "does not hold, start a server (`vllm serve --tensor-parallel-size`) and pass --vllm_mode server."
        )
    usual = {
        "load_in_4bit": False,
        "load_in_8bit": False,
        "attn_implementation": None,
        "model_revision": "main",
        "dtype": "auto",
    }
    for option, value in usual.items():
        if getattr(loading, option) != value:
            raise ValueError(f"{option} is not for --use_vllm, which loads the model as it was saved.")
    trust: dict[str, Any] = {"trust_remote_code": loading.trust_remote_code}
    try:
        config = AutoConfig.from_pretrained(name, **trust)
    except (OSError, ValueError) as error:
        raise loading_error("model", name, error) from error
    tokenizer = loading.load_tokenizer(name)
    model: Any = torch.nn.Module()  # without layers, as vLLM loads the weights: these attributes are all that is read
    model.name_or_path, model.config = name, config
    limit = vllm.vllm_context(0)
    if 0 < limit <= settings.max_completion_length:
        raise ValueError(
            f"max_completion_length ({settings.max_completion_length}) leaves no tokens for a prompt: "
            f"vllm_max_model_length is {limit}."
        )
    if loading.eos_token:
        settings = stopping_at(settings, tokenizer.eos_token_id)
    backend = _vllm_backend(name, model, tokenizer, settings, vllm, batch_size, loading.trust_remote_code)

    def generate(prompts: list[list[int]], settings: GenerationSettings) -> list[list[Completion]]:
        return backend(prompts)

    return Policy(name, tokenizer, generate, context=vllm.vllm_context(context_length(model)))


def _vllm_backend(
    name: str,
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    settings: GenerationSettings,
    vllm: VLLMSettings,
    batch_size: int,
    trust_remote_code: bool,
) -> Callable[[list[list[int]]], list[list[Completion]]]:
    """A function that generates completions with a vLLM server, or with vLLM in this process."""
    if vllm.vllm_mode == "server":
        return VLLMServer(name, tokenizer, settings, vllm)
    from accelerate import Accelerator

    from trl_ext.generation.vllm import VLLM

    try:
        model.generation_config = GenerationConfig.from_pretrained(name)
    except OSError:  # it has none
        model.generation_config = GenerationConfig(eos_token_id=getattr(model.config, "eos_token_id", None))
    return VLLM(
        model,
        tokenizer,
        settings,
        vllm,
        Accelerator(),
        batch_size=batch_size,
        trust_remote_code=trust_remote_code,
    )


class Models:
    """
    The models that `trl-ext evaluate` measures, loaded one after the other to keep memory low.

    Args:
        names (`Sequence[str]`):
            Models to measure: Hub ids, directories, LoRA adapter directories.
        loading ([`~trl_ext.cli.arguments.LoadingArguments`]):
            How to load them.
        base (`str`, *optional*):
            The base of all of them. By default the base of those that are adapters.
        judge (`str`, *optional*):
            The model that the perplexity is measured under. By default the base.
        batch_size (`int`, *optional*, defaults to `0`):
            Sequences to generate or score at once (`0`: 64 on CPU, 128 elsewhere).
        conversational (`bool`, *optional*, defaults to `False`):
            Whether the prompts are messages.

    Attributes:
        base (`str`, *optional*):
            The base model.
        names (`list[str]`):
            The models to measure, the base first.
        failures (`dict[str, str]`):
            Models whose tokenizer cannot be loaded, with the reason.

    Raises:
        `OSError` or `ValueError`: The base, the judge or the only other model cannot be loaded, or the adapters have
            several bases and none is named.
    """

    def __init__(
        self,
        names: Sequence[str],
        loading: LoadingArguments,
        *,
        base: str | None = None,
        judge: str | None = None,
        batch_size: int = 0,
        conversational: bool = False,
    ) -> None:
        self.loading = loading
        self.batch_size = batch_size or usual_batch_size(default_device())
        self.base = base if base is not None else _base_of_adapters(names)
        self._requested, self._base_is_named = list(names), base is not None
        others = [name for name in names if not same_source(name, self.base)]
        self.names = others if self.base is None else [self.base, *others]
        self.failures: dict[str, str] = {}
        self.tokenizers: dict[str, PreTrainedTokenizerBase] = {}
        for name in self.names:  # before anything is measured, so that a misspelt name is found at once
            try:
                self.tokenizers[name] = self._tokenizer(name)
            except (OSError, ValueError) as error:
                if name == self.base or others == [name]:
                    raise type(error)(f"model {name!r}: {error}") from error
                self.failures[name] = f"{type(error).__name__}: {error}"
        if self.base is not None and conversational:
            self._lend_chat_template(self.base)
        self._base: Policy | None = None
        self._judge: Policy | None = None
        quantized = loading.load_in_4bit or loading.load_in_8bit  # the judge is not
        self._base_judges = judge is not None and same_source(judge, self.base) and not quantized
        if judge is not None and not self._base_judges:
            self._judge = self._policy(judge, loading.load(judge, quantize=False), self._tokenizer(judge))

    def load(self, name: str) -> tuple[Policy, Policy | None]:
        """
        Load a model. Its memory is released with the last reference to the policies.

        Args:
            name (`str`):
                One of `names`; the base comes before the others.

        Returns:
            `tuple[Policy, Policy | None]`: The policy of the model, and the one that its KL is measured to; for the
            base model both are the same.
        """
        model = self.loading.load(name, revision=self._revision(name))
        policy = self._policy(name, model, self.tokenizers[name])
        policy = replace(policy, method=trained_by(name))
        base: Policy | None = None
        if name == self.base:
            base = policy
            if self._base_judges:
                self._judge = policy
            if any(self._has_base(other) and not self._shares_base(other) for other in self.names[1:]):
                self._base = policy
        elif self.base is not None and self._shares_base(name):
            base = self._policy(self.base, model, self.tokenizers[self.base], use_adapter=False)
        elif self._has_base(name):
            base = self._base
        return policy, base

    def measure(self, policy: Policy, base: Policy | None, **kwargs: Any) -> Evaluation:
        """[`~trl_ext.evaluation.evaluate.evaluate`] with the judge of these models."""
        return evaluate(policy, base=base, judge=self._judge, **kwargs)

    def _policy(self, name: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, **kwargs: Any) -> Policy:
        return model_policy(model, tokenizer, name=name, batch_size=self.batch_size, **kwargs)

    def _shares_base(self, name: str) -> bool:
        """Whether the KL of `name` is measured to itself without its adapter, which is then the base."""
        config = adapter_config(name)
        return config is not None and self._is_adapter_on_base(name) and not changes_base(config)

    def _has_base(self, name: str) -> bool:
        """Whether the KL of `name` is measured to the base."""
        return self._base_is_named or self._is_adapter_on_base(name)

    def _is_adapter_on_base(self, name: str) -> bool:
        own = adapter_base(name)
        return own is not None and same_source(own, self.base)

    def _revision(self, name: str) -> str | None:
        return self.loading.model_revision if name in self._requested else None

    def _tokenizer(self, name: str) -> PreTrainedTokenizerBase:
        return self.loading.load_tokenizer(name, self._revision(name))

    def _lend_chat_template(self, base: str) -> None:
        """Give a base without a chat template that of the first model with the same vocabulary."""
        own = self.tokenizers[base]
        for name, tokenizer in self.tokenizers.items():
            if own.chat_template is None and tokenizer.chat_template is not None and same_vocabulary(tokenizer, own):
                own.chat_template = tokenizer.chat_template
                logger.warning("%s has no chat template; that of %s is used for it.", base, name)


# Tags of cards that trainers write, beside the name of the method.
_OTHER_TAGS = {"generated_from_trainer", "trl", "trl-ext", "unsloth", "hf_jobs"}


def trained_by(name: str) -> str:
    """
    The method that a model in a directory was trained with, from the tags of its model card; "" if it is not known.

    TRL's trainers and ours write the tag `trl` and their own, such as `dpo`.
    """
    card = Path(name) / "README.md"
    if not card.is_file():
        return ""
    try:
        tags = ModelCard.load(card).data.tags or []
    except (OSError, ValueError):  # a card of another form
        return ""
    own = [tag.upper() for tag in tags if tag not in _OTHER_TAGS and ":" not in tag]
    return own[0] if own and "trl" in tags else ""


def _base_of_adapters(names: Sequence[str]) -> str | None:
    bases: list[str] = []
    for name in names:
        base = adapter_base(name)
        if base is not None and not any(same_source(base, other) for other in bases):
            bases.append(base)
    if len(bases) > 1:
        raise ValueError(
            f"the adapters have different base models ({', '.join(bases)}): name one with --base_model_name_or_path, "
            "or measure them one by one"
        )
    return bases[0] if bases else None
