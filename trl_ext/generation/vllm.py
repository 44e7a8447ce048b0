# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""vLLM, by TRL's integration: what it is given of our settings, and what it must not be."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from transformers import PreTrainedTokenizerBase

from trl_ext.data.completion import Completion
from trl_ext.generation_settings import GenerationSettings
from trl_ext.models.load import base_of, is_quantized
from trl_ext.seeds import chance
from trl_ext.upstream import vllm_generation

from .completions import grouped
from .vllm_settings import VLLMSettings


# What vLLM is given of our settings: these with the prefix `vllm_`, and those as they are.
_VLLM_SETTINGS = (
    "mode server_host server_port group_port server_timeout tensor_parallel_size gpu_memory_utilization "
    "enable_sleep_mode model_impl"
).split()
_SAMPLING_SETTINGS = "repetition_penalty temperature top_p top_k min_p max_completion_length generation_kwargs".split()
# Names of vLLM's sampling settings for which there are settings of ours.
_OURS = {"n": "num_generations", "max_tokens": "max_completion_length"}
_OURS |= {name: name for name in ("repetition_penalty", "temperature", "top_p", "top_k", "min_p")}


class VLLM:
    """
    vLLM, run by TRL's integration.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]): Whose weights are sent to it, or what has
            its `name_or_path`, `config` and `generation_config`.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): Its tokenizer.
        settings ([`~trl_ext.generation.generate.GenerationSettings`]): How to draw.
        args ([`~trl_ext.generation.vllm_settings.VLLMSettings`]): How to run vLLM.
        accelerator ([`~accelerate.Accelerator`]): The processes that draw.
        batch_size (`int`): Sequences at once.
        sends_weights (`bool`, *optional*, defaults to `True`): Whether [`VLLM.sync_weights`] will be called.
        trust_remote_code (`bool`, *optional*, defaults to `False`): Whether to run code from the Hub.

    Raises:
        `ValueError`: A quantised model, settings that vLLM does not have, or a server that has another model.
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
        sends_weights: bool = True,
        trust_remote_code: bool = False,
    ) -> None:
        self.tokenizer, self.settings, self.accelerator = tokenizer, settings, accelerator
        self._policy = base_of(model)
        if is_quantized(self._policy):
            raise ValueError(
                "`use_vllm` cannot be used with a 4-bit or 8-bit model: vLLM is given the merged weights before each "
                "round, and a quantised base cannot be merged with its adapter without rounding it anew. Leave "
                "`use_vllm` out (transformers draws the completions), or train LoRA on a model in 16 bits."
            )
        _check(settings, args)
        self._parallel = args.vllm_tensor_parallel_size if args.vllm_mode == "colocate" else 1
        self._address = args.vllm_address if args.vllm_mode == "server" else None
        with self._faults():
            self._engine = vllm_generation(sends_weights=sends_weights)(
                model=model,
                accelerator=accelerator,
                processing_class=tokenizer,
                server_base_url=args.vllm_server_base_url or None,
                max_model_length=args.vllm_max_model_length or None,
                max_num_seqs=batch_size,
                logprobs=0,
                trust_remote_code=trust_remote_code,
                **{name: getattr(args, f"vllm_{name}") for name in _VLLM_SETTINGS},
                **{name: getattr(settings, name) for name in _SAMPLING_SETTINGS},
            )
        if not sends_weights and self._address is not None:
            self._check_served(str(model.name_or_path))

    def sync_weights(self) -> None:
        """Send the model's weights as they are now."""
        try:
            with self._faults():
                self._engine.sync_weights()
        except AttributeError as error:
            if self.accelerator.device.type != "cpu":
                raise
            raise OSError(
                f"vLLM took no weights ({error}): its builds for CPUs pack them and cannot take others. Train with "
                "`use_vllm` on a GPU, or leave it out (transformers draws); `trl-ext sample` has it on CPUs."
            ) from error

    def __call__(self, prompts: list[list[int]]) -> list[list[Completion]]:
        """K completions of each prompt."""
        k, asked = self.settings.num_generations, prompts
        if self.accelerator.num_processes > 1:
            # TRL deals the server's answers out by the number of prompts of one process.
            most = max(gather_object([len(prompts)]))
            asked = prompts + (prompts[:1] or [[self._eos()]]) * (most - len(prompts))
        with self._faults(), self._chance():
            _, ids, _, _ = self._engine.generate(
                prompts=[prompt for prompt in asked for _ in range(k)], images=None, num_generations=k
            )
        if len(ids) != k * len(asked):
            raise RuntimeError(f"vLLM returned {len(ids)} completions, where {len(asked)} prompts ask for {k} each.")
        # For where completions end; `generation_kwargs` are vLLM's here.
        config = replace(self.settings, generation_kwargs=None).generation_config(self._policy, self.tokenizer)
        return grouped([list(x) for x in ids], k, self.tokenizer, config)[: len(prompts)]

    def _eos(self) -> int:
        return int(self.tokenizer.eos_token_id or 0)

    @contextmanager
    def _chance(self) -> Iterator[None]:
        """
        What vLLM draws follows torch's generator, whichever its runner draws by: torch's or numpy's.

        Processes that share a model draw alike: each of them samples the tokens that all of them go on from. A
        trainer's processes have chances of their own, which is right for all others.
        """
        number = int(torch.randint(2**31, ()))
        if self._parallel > 1:
            number = gather_object([number])[self.accelerator.process_index // self._parallel * self._parallel]
        before = numpy.random.get_state()
        numpy.random.seed(number)
        try:
            with chance(number):
                yield
        finally:
            numpy.random.set_state(before)

    @contextmanager
    def _faults(self) -> Iterator[None]:
        """Errors of what is not installed and of the server, which TRL raises as bare `Exception`, say what to do."""
        try:
            yield
        except ImportError as error:
            if find_spec("vllm") is not None:
                raise ImportError(
                    f"`use_vllm` is set, and vLLM is installed, but it cannot be used: {error}"
                ) from error
            raise ImportError(
                "`use_vllm` is set, but vLLM is not installed, which is needed for asking a server too: "
                "pip install 'trl-ext[vllm]', or leave `use_vllm` out."
            ) from error
        except Exception as error:
            if self._address is None or not (type(error) is Exception or isinstance(error, OSError)):
                raise
            raise ConnectionError(f"the vLLM server at {self._address}: {error}") from error

    def _check_served(self, name: str) -> None:
        """No weights are sent: another model's token ids would be read by this one's tokenizer."""
        client = getattr(self._engine, "vllm_client", None)  # one process has it
        served = name if client is None else str(client.model)
        if _own_name(served) != _own_name(name):
            raise ValueError(
                f"the vLLM server at {self._address} has {served!r}, not {name!r}. If it is the same model, start the "
                f"server with `--served-model-name {_own_name(name)}`."
            )


def _check(settings: GenerationSettings, args: VLLMSettings) -> None:
    if settings.num_beams > 1:
        raise ValueError("`use_vllm` has no beam search: leave `num_beams` out.")
    if settings.cuda_graphs == "always":
        raise ValueError("`cuda_graphs` is for transformers' loop, which `use_vllm` has not: leave it out.")
    if "seed" in (settings.generation_kwargs or {}) and args.vllm_mode == "colocate":
        raise ValueError(
            "`generation_kwargs` must not have 'seed' with colocated vLLM, which would write the same completion of a "
            "prompt every time: set `seed`, which decides already."
        )
    for name in settings.generation_kwargs or {}:
        if name in _OURS:
            raise ValueError(f"`generation_kwargs` must not have {name!r} with `use_vllm`: set `{_OURS[name]}`.")


def _own_name(name: str) -> str:
    """The last part of a path or a name on the Hub; of a trainer's checkpoint with its directory."""
    parts = (str(Path(name).resolve()) if Path(name).is_dir() else name.rstrip("/")).split("/")
    return "/".join(parts[-2:] if parts[-1].startswith("checkpoint-") else parts[-1:])
