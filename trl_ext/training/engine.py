# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""What draws completions: transformers' `generate`, its continuous batching, or vLLM by TRL's integration."""

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer

from trl_ext.data.completion import Completion, decode_groups
from trl_ext.decoding.static_generate import release_static_caches
from trl_ext.generation.generate import generate, usual_batch_size
from trl_ext.generation.vllm import VLLM
from trl_ext.generation.vllm_settings import VLLMSettings
from trl_ext.models.modes import evaluation_mode
from trl_ext.models.sharding import gathered

from .config import ExtConfig
from .copies import sampling_copy


# From prompts to K completions each.
Draw = Callable[[list[list[int]]], list[list[Completion]]]


@dataclass
class EngineConfig(VLLMSettings, ExtConfig):
    r"""
    Settings of methods that sample from what they train.

    Only what is added is listed; see also [`~trl_ext.generation.vllm_settings.VLLMSettings`] and
    [`~trl_ext.training.config.ExtConfig`].

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
        self._closed = False
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
            self._vllm, self._closed = None, True
            gc.collect()  # vLLM shuts down as it is collected

    @contextmanager
    def drawing(self, trainer: Trainer) -> Iterator[Draw]:
        """
        A function that draws from the model in training as it is now.

        Args:
            trainer ([`~transformers.Trainer`]): Whose model it is.
        """
        with (
            gathered(
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

        Raises:
            `RuntimeError`: vLLM was to draw, and was let go.
        """
        if self._closed:
            raise RuntimeError("vLLM ended with the trainer (`end` or `close`): make a new trainer to draw again.")
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
            release_static_caches(model)  # the step that follows may need their memory

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
        return decode_groups([list(x) for x in ids], k, self.tokenizer, config)
