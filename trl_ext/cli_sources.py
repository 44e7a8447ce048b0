# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""The models that `trl-ext sample` draws from, by transformers or by vLLM."""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import AutoConfig, GenerationConfig, PreTrainedConfig

from .cli_models import LoadingArguments, load_source
from .generation_settings import GenerationSettings
from .models import adapter_base, unloadable
from .sampler import Source
from .tokens import load_tokenizer
from .vllm_settings import VLLMSettings


class NamedModel(torch.nn.Module):
    """
    What there is to know of a model that vLLM loads, by its name; a module without weights.

    Args:
        name_or_path (`str`): Its path or name on the Hub.
        config ([`~transformers.PreTrainedConfig`]): Its config.
        generation_config ([`~transformers.GenerationConfig`]): How it generates.
    """

    def __init__(self, name_or_path: str, config: PreTrainedConfig, generation_config: GenerationConfig) -> None:
        super().__init__()
        self.name_or_path, self.config, self.generation_config = name_or_path, config, generation_config


def load_sources(
    names: Sequence[str], loading: LoadingArguments, settings: GenerationSettings, batch_size: int
) -> list[Source]:
    """
    Models to sample from, by transformers or, if `loading` has vLLM's settings and they say so, by vLLM.

    Raises:
        `OSError`: There is no such model.
        `ValueError`: Of several models, an adapter, or one that is to be loaded otherwise than it was saved, for vLLM.
        `ImportError`: vLLM is not installed.
    """
    if not isinstance(loading, VLLMSettings) or not loading.use_vllm:
        return [load_source(name, loading) for name in names]
    if len(names) != 1:
        raise ValueError("--use_vllm is for one model at a time: sample with one, then from its output with the next.")
    return [_vllm_source(names[0], loading, settings, loading, batch_size)]


def _vllm_source(
    name: str, loading: LoadingArguments, settings: GenerationSettings, vllm: VLLMSettings, batch_size: int
) -> Source:
    from accelerate import Accelerator

    from .vllm_engine import VLLM

    if adapter_base(name) is not None:
        raise ValueError(f"{name!r} is an adapter, and vLLM takes whole models: merge it first (`merge_and_unload`).")
    if vllm.vllm_enable_sleep_mode:
        raise ValueError("vllm_enable_sleep_mode is for training, which sends vLLM its weights anew: leave it out.")
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
        raise unloadable("model", name, error) from error
    try:
        generation_config = GenerationConfig.from_pretrained(name)
    except OSError:  # it has none
        generation_config = GenerationConfig(eos_token_id=getattr(config, "eos_token_id", None))
    tokenizer = load_tokenizer(name, **trust)
    model: Any = NamedModel(name, config, generation_config)
    draw = VLLM(
        model, tokenizer, settings, vllm, Accelerator(), batch_size=batch_size, sends_weights=False, **trust
    )  # fmt: skip
    return Source(name, tokenizer, model, draw, vllm.vllm_context(0))
