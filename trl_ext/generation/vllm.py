# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Generation with vLLM through TRL's integration: an engine in this process, or a server that is sent weights."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

import numpy
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from transformers import PreTrainedTokenizerBase

from trl_ext.data.completion import Completion, decode_groups
from trl_ext.generation_settings import GenerationSettings
from trl_ext.models.properties import base_of, is_quantized
from trl_ext.progress import progress
from trl_ext.seeds import fork_rng
from trl_ext.upstream import vllm_generation

from .vllm_settings import VLLMSettings


# The settings that TRL is passed: those with the prefix `vllm_`, without it, and those under their own names.
_VLLM_SETTINGS = (
    "mode server_host server_port group_port server_timeout tensor_parallel_size gpu_memory_utilization "
    "enable_sleep_mode model_impl"
).split()
_SAMPLING_SETTINGS = "repetition_penalty temperature top_p top_k min_p max_completion_length generation_kwargs".split()


class VLLM:
    """
    Samples with vLLM, from the model as it was loaded or as [`VLLM.sync_weights`] sent it last.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            The model. If its weights are never sent, only its `name_or_path`, `config` and `generation_config` are
            used.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Its tokenizer.
        settings ([`~trl_ext.generation_settings.GenerationSettings`]):
            How to sample.
        args ([`~trl_ext.generation.vllm_settings.VLLMSettings`]):
            How to run vLLM. In mode `"server"`, TRL needs a GPU here and a server that accepts weights.
        accelerator ([`~accelerate.Accelerator`]):
            The processes that sample together.
        batch_size (`int`):
            Sequences at once.
        trust_remote_code (`bool`, *optional*, defaults to `False`):
            Whether to run code from the Hub.

    Raises:
        `ValueError`: The model is quantised, or vLLM lacks one of the settings.
        `ImportError`: vLLM is not installed.
        `ConnectionError`: The server cannot be reached, or answers with an error.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: PreTrainedTokenizerBase,
        settings: GenerationSettings,
        args: VLLMSettings,
        accelerator: Accelerator,
        *,
        batch_size: int,
        trust_remote_code: bool = False,
    ) -> None:
        self.tokenizer, self.settings, self.accelerator = tokenizer, settings, accelerator
        self._policy = base_of(model)
        if is_quantized(self._policy):
            raise ValueError(
                "`use_vllm` cannot be used with a 4-bit or 8-bit model: vLLM is sent the merged weights before each "
                "round, and merging an adapter into a quantised base would round the base again. Leave `use_vllm` out "
                "(transformers then generates the completions), or train LoRA on a 16-bit model."
            )
        args.check_sampling(settings)
        self._parallel = args.vllm_tensor_parallel_size if args.vllm_mode == "colocate" else 1
        self._address = args.vllm_address if args.vllm_mode == "server" else None
        with self._explained_errors():
            self._engine = vllm_generation()(
                model=model,
                accelerator=accelerator,
                processing_class=tokenizer,
                server_base_url=args.vllm_server_base_url or None,
                max_model_length=args.vllm_max_model_length or None,
                max_num_seqs=batch_size,
                logprobs=0,
                structured_outputs_regex=getattr(args, "vllm_structured_outputs_regex", "") or None,
                trust_remote_code=trust_remote_code,
                **{name: getattr(args, f"vllm_{name}") for name in _VLLM_SETTINGS},
                **{name: getattr(settings, name) for name in _SAMPLING_SETTINGS},
            )

    def sync_weights(self) -> None:
        """Send the model's current weights to vLLM."""
        try:
            with self._explained_errors():
                self._engine.sync_weights()
        except AttributeError as error:
            if self.accelerator.device.type != "cpu":
                raise
            raise OSError(
                f"vLLM did not accept the weights ({error}): its builds for CPUs pack weights and keep them. "
                "Train with `use_vllm` on a GPU, or leave it out (transformers then generates the completions); "
                "`trl-ext sample` can use vLLM on a CPU."
            ) from error

    def __call__(self, prompts: list[list[int]], num_generations: int = 0) -> list[list[Completion]]:
        """
        Generate K completions per prompt.

        Args:
            prompts (`list[list[int]]`): Token ids of the prompts of this process.
            num_generations (`int`, *optional*, defaults to `0`): K (`0`: that of the settings).

        Returns:
            `list[list[Completion]]`: K completions for each prompt.
        """
        k, padded = num_generations or self.settings.num_generations, prompts
        if self.accelerator.num_processes > 1:
            # TRL assumes that all processes have equally many prompts when it distributes a server's completions.
            most = max(gather_object([len(prompts)]))
            padded = prompts + (prompts[:1] or [[self._eos()]]) * (most - len(prompts))
        with progress("sampling", len(prompts)) as phase, self._explained_errors(), self._seeded():
            _, ids, _, _ = self._engine.generate(
                prompts=[prompt for prompt in padded for _ in range(k)], images=None, num_generations=k
            )
            phase.advance(len(prompts))
        if len(ids) != k * len(padded):
            raise RuntimeError(f"vLLM returned {len(ids)} completions, where {len(padded)} prompts ask for {k} each.")
        # The config states where completions end. `generation_kwargs` are vLLM's here, and unknown to transformers.
        config = replace(self.settings, generation_kwargs=None).generation_config(self._policy, self.tokenizer)
        return decode_groups([list(x) for x in ids], padded, self.tokenizer, config)[: len(prompts)]

    def _eos(self) -> int:
        return int(self.tokenizer.eos_token_id or 0)

    @contextmanager
    def _seeded(self) -> Iterator[None]:
        """
        Seed the global generators of torch and numpy, from torch's: vLLM's runners sample with one or the other.

        Processes that hold parts of one model get the same seed, as all of them must sample the same tokens. A
        trainer's processes have different seeds otherwise.
        """
        seed = int(torch.randint(2**31, ()))
        if self._parallel > 1:
            seed = gather_object([seed])[self.accelerator.process_index // self._parallel * self._parallel]
        before = numpy.random.get_state()
        numpy.random.seed(seed)
        try:
            with fork_rng(seed):
                yield
        finally:
            numpy.random.set_state(before)

    @contextmanager
    def _explained_errors(self) -> Iterator[None]:
        """Replace TRL's errors, of which the server's are a bare `Exception`, by errors that state what to do."""
        try:
            yield
        except ImportError as error:
            if find_spec("vllm") is not None:
                raise ImportError(
                    f"`use_vllm` is set, and vLLM is installed, but it cannot be used: {error}"
                ) from error
            raise ImportError(
                "`use_vllm` is set, but vLLM is not installed: pip install 'trl-ext[vllm]', or leave `use_vllm` out. "
                "Training with a vLLM server needs vLLM here too."
            ) from error
        except Exception as error:
            if self._address is None or not (type(error) is Exception or isinstance(error, OSError)):
                raise
            raise ConnectionError(f"the vLLM server at {self._address}: {error}") from error
