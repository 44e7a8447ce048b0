# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""What draws completions: transformers' `generate`, its continuous batching, or vLLM by TRL's integration."""

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, gather_object
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer

from .completions import Completion, completions
from .config import ExtConfig
from .copies import sampling_copy
from .generation_settings import GenerationSettings
from .models import base_of, is_quantized
from .sampling import evaluation_mode, generate, usual_batch_size
from .sharding import whole
from .static_generate import forget_loops
from .upstream import vllm_generation
from .vllm_settings import VLLMSettings


# What vLLM is given of our settings: these with the prefix `vllm_`, and those as they are.
_VLLM_SETTINGS = (
    "mode server_host server_port group_port server_timeout tensor_parallel_size gpu_memory_utilization "
    "enable_sleep_mode model_impl"
).split()
_SAMPLING_SETTINGS = "repetition_penalty temperature top_p top_k min_p max_completion_length generation_kwargs".split()

# From prompts to K completions each.
Draw = Callable[[list[list[int]]], list[list[Completion]]]


@dataclass
class EngineConfig(VLLMSettings, ExtConfig):
    r"""
    Settings of methods that sample from what they train.

    Only what is added is listed; see also [`~trl_ext.vllm_settings.VLLMSettings`] and
    [`~trl_ext.config.ExtConfig`].

    Parameters:
        use_transformers_continuous_batching (`bool`, *optional*, defaults to `False`):
            Whether to draw completions with transformers' continuous batching.
        transformers_continuous_batching_config (`dict[str, Any]` or `str`, *optional*):
            Keyword arguments for its config.
    """

    _VALID_DICT_FIELDS: ClassVar = [*ExtConfig._VALID_DICT_FIELDS, "transformers_continuous_batching_config"]

    none_is_zero: ClassVar[tuple[str, ...]] = (*ExtConfig.none_is_zero, "vllm_max_model_length")

    use_transformers_continuous_batching: bool = field(
        default=False, metadata={"help": "Whether to draw completions with transformers' continuous batching."}
    )
    transformers_continuous_batching_config: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Keyword arguments for `transformers.generation.ContinuousBatchingConfig`."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_vllm()
        if self.use_vllm and self.use_transformers_continuous_batching:
            raise ValueError("`use_vllm` and `use_transformers_continuous_batching` exclude each other.")
        if self.use_transformers_continuous_batching and self.repetition_penalty != 1:
            raise ValueError(
                "`repetition_penalty` is not applied by transformers' continuous batching, which knows the last token "
                "of a text only: leave one of the two out."
            )


class VLLM:
    """
    vLLM, run by TRL's integration.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]): Whose weights are sent to it, or what has
            its `name_or_path`, `config` and `generation_config`.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): Its tokenizer.
        settings ([`~trl_ext.sampling.GenerationSettings`]): How to draw.
        args ([`~trl_ext.vllm_settings.VLLMSettings`]): How to run vLLM.
        accelerator ([`~accelerate.Accelerator`]): The processes that draw.
        batch_size (`int`): Sequences at once.
        sends_weights (`bool`, *optional*, defaults to `True`): Whether [`VLLM.sync_weights`] will be called.
        trust_remote_code (`bool`, *optional*, defaults to `False`): Whether to run code from the Hub.

    Raises:
        `ValueError`: A quantised model, or settings that vLLM does not have.
        `ImportError`: vLLM is not installed.
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
        if settings.num_beams > 1:
            raise ValueError("`use_vllm` has no beam search: leave `num_beams` out.")
        try:
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
        except ImportError as error:
            raise ImportError(
                "`use_vllm` is set, but vLLM is not installed: pip install 'trl-ext[vllm]', or leave `use_vllm` out."
            ) from error

    def sync_weights(self) -> None:
        """Send the model's weights as they are now."""
        self._engine.sync_weights()

    def __call__(self, prompts: list[list[int]]) -> list[list[Completion]]:
        """K completions of each prompt."""
        k, asked = self.settings.num_generations, prompts
        if self.accelerator.num_processes > 1:
            # TRL deals the server's answers out by the number of prompts of one process.
            most = max(gather_object([len(prompts)]))
            asked = prompts + (prompts[:1] or [[self._eos()]]) * (most - len(prompts))
        _, ids, _, _ = self._engine.generate(
            prompts=[prompt for prompt in asked for _ in range(k)], images=None, num_generations=k
        )
        # For where completions end; `generation_kwargs` are vLLM's here.
        config = replace(self.settings, generation_kwargs=None).generation_config(self._policy, self.tokenizer)
        return grouped([list(x) for x in ids], k, self.tokenizer, config)[: len(prompts)]

    def _eos(self) -> int:
        return int(self.tokenizer.eos_token_id or 0)


class Engine:
    """
    What draws completions in training, as the settings say.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]): The policy.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): Its tokenizer.
        args ([`EngineConfig`]): The settings.
        accelerator ([`~accelerate.Accelerator`]): The trainer's.

    Raises:
        `ValueError`, `ImportError`: See [`VLLM`]; or continuous batching with DeepSpeed or FSDP.
    """

    def __init__(
        self, model: Any, tokenizer: PreTrainedTokenizerBase, args: EngineConfig, accelerator: Accelerator
    ) -> None:
        self.tokenizer, self.args = tokenizer, args
        in_pieces = accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED)
        if in_pieces and args.use_transformers_continuous_batching:
            raise ValueError(
                "`use_transformers_continuous_batching` is not for models that DeepSpeed or FSDP have in pieces; "
                "unset it."
            )
        self.batch_size = args.generation_batch_size or usual_batch_size(accelerator.device)
        self.settings = args.generation_settings()
        self._vllm: VLLM | None = None
        if args.use_vllm:
            own = {"batch_size": self.batch_size, "trust_remote_code": args.trust_remote_code}
            self._vllm = VLLM(model, tokenizer, self.settings, args, accelerator, **own)  # type: ignore[arg-type]

    @property
    def gathers(self) -> bool:
        """Whether a model in pieces has to be whole before [`Engine.drawer`]: vLLM is sent it piece by piece."""
        return self.args.ds3_gather_for_generation and self._vllm is None

    def close(self) -> None:
        """Let vLLM go, before the process group that it uses is destroyed. Nothing can be drawn with it any more."""
        if self._vllm is not None:
            self._vllm = None
            gc.collect()  # vLLM shuts down as it is collected

    @contextmanager
    def drawing(self, trainer: Trainer) -> Iterator[Draw]:
        """
        A function that draws from the model in training as it is now.

        Args:
            trainer ([`~transformers.Trainer`]): Whose model it is.
        """
        with (
            whole(
                trainer.model_wrapped,
                trainer.accelerator,
                gather=self.gathers,
                checkpointing=trainer.args.gradient_checkpointing_kwargs,
            ) as unwrapped,
            torch.no_grad(),
            trainer.compute_loss_context_manager(),
        ):
            yield self.drawer(unwrapped)

    def drawer(self, model: Any) -> Draw:
        """
        A function that draws from `model` as it is now; to be called without gradients.

        Args:
            model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]): The unwrapped policy.
        """
        if self._vllm is not None:
            self._vllm.sync_weights()
            return self._vllm
        copy = sampling_copy(model, self.args)
        if self.args.use_transformers_continuous_batching:
            return lambda prompts: self._continuously(copy, prompts)
        return lambda prompts: self._generated(copy, prompts)

    def _generated(self, model: PreTrainedModel, prompts: list[list[int]]) -> list[list[Completion]]:
        try:
            return generate(model, self.tokenizer, prompts, self.settings, batch_size=self.batch_size)
        finally:
            forget_loops(model)  # the step that follows may need their memory

    def _continuously(self, model: PreTrainedModel, prompts: list[list[int]]) -> list[list[Completion]]:
        from transformers.generation import ContinuousBatchingConfig

        config = self.settings.generation_config(model, self.tokenizer, own_sampling=False)
        # Transformers' own share (0.9) leaves no memory for the backward pass.
        given: Any = self.args.transformers_continuous_batching_config or {}
        kwargs = {"max_memory_percent": 0.5, **given}
        k = self.settings.num_generations
        with evaluation_mode(model):
            found = model.generate_batch(
                [list(prompt) for prompt in prompts for _ in range(k)],
                generation_config=config,
                continuous_batching_config=ContinuousBatchingConfig(**kwargs),
                progress_bar=False,
            )
        ids = [output.generated_tokens for output in found.values()]
        if len(ids) != k * len(prompts) or not all(ids):
            raise RuntimeError(
                f"Continuous batching returned {sum(map(bool, ids))} answers of {k * len(prompts)}. Give it more "
                "memory (`transformers_continuous_batching_config`), or leave it out."
            )
        return grouped([list(x) for x in ids], k, self.tokenizer, config)


def grouped(ids: list[list[int]], k: int, tokenizer: Any, config: Any) -> list[list[Completion]]:
    """Generated ids, k to a prompt, as completions."""
    flat = completions(ids, tokenizer, config)
    return [flat[i : i + k] for i in range(0, len(flat), k)]
