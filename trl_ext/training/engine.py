# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Generation backends used during training: `generate`, continuous batching, vLLM."""

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer

from trl_ext.data.completion import Completion, decode_groups
from trl_ext.decoding.static_generate import release_static_caches
from trl_ext.generation.generate import generate, usual_batch_size
from trl_ext.generation.vllm import VLLM
from trl_ext.generation.vllm_settings import VLLMSettings, stopping_at
from trl_ext.generation_settings import GenerationSettings
from trl_ext.logprobs.shared_prefix import SHARED_PREFIX_SETTINGS
from trl_ext.models.modes import evaluation_mode
from trl_ext.models.sharding import gathered
from trl_ext.progress import progress
from trl_ext.rewards.aggregation import AGGREGATION, SUM

from .config import ExtConfig
from .copies import sampling_copy
from .summary import describe_generate


# From prompts (token ids) to K completions of each.
GenerateFunction = Callable[[list[list[int]]], list[list[Completion]]]


@dataclass
class EngineConfig(VLLMSettings, ExtConfig):
    r"""
    Base configuration of methods whose model generates completions and is trained on them.

    Only the parameters that this class adds are listed. For the others, see
    [`~trl_ext.generation.vllm_settings.VLLMSettings`] and [`~trl_ext.training.config.ExtConfig`].

    Parameters:
        use_transformers_continuous_batching (`bool`, *optional*, defaults to `False`):
            Whether to generate completions with transformers' continuous batching.
        transformers_continuous_batching_config (`dict[str, Any]` or `str`, *optional*):
            Keyword arguments for [`~transformers.ContinuousBatchingConfig`].
        resample_steps (`int`, *optional*, defaults to `0`):
            Generate new completions with the current model every this many optimizer steps. `0`: not by steps.
        steps_per_generation (`int`, *optional*, defaults to `0`):
            TRL's unit of `resample_steps`: micro-batches instead of optimizer steps. `0`: not set.
        beta (`float`, *optional*, defaults to `0.0`):
            Coefficient of the KL term that is subtracted from the score of a generated completion,
            beta * (log pi(y | x) - log pi_0(y | x)), in nats per completion. `0.0`: no KL term, and no reference model
            in memory.
        sync_ref_model (`bool`, *optional*, defaults to `False`):
            Whether the reference follows the policy: every `ref_model_sync_steps` steps, each of its weights becomes
            alpha * the policy's + (1 - alpha) * its own (TR-DPO, https://huggingface.co/papers/2404.09656).
        ref_model_mixup_alpha (`float`, *optional*, defaults to `0.6`):
            alpha.
        ref_model_sync_steps (`int`, *optional*, defaults to `512`):
            Optimizer steps between two updates of the reference.
        vllm_structured_outputs_regex (`str`, *optional*, defaults to `""`):
            Regular expression that vLLM's completions match. Empty: none.
        multi_objective_aggregation (`str`, *optional*, defaults to `"sum_then_normalize"`):
            How the score of a completion is made of several rewards: `"sum_then_normalize"` is their weighted sum,
            which the method may normalise; `"normalize_then_sum"` normalises each reward over the completions of a
            prompt, which are all that are scored together, and then adds them up with their weights
            (GDPO, https://huggingface.co/papers/2601.05242). TRL's names and default. The KL term is subtracted after
            that. The metric `reward` is the weighted sum with either.
        mask_truncated_completions (`bool`, *optional*, defaults to `False`):
            Whether generated completions that `max_completion_length` cut off are left out of the loss.
        completions_per_forward (`int`, *optional*, defaults to `0`):
            Most completions in a forward pass. The completions of a batch beyond it are read in parts of this many,
            twice, with the gradient and loss of one pass over all of them: memory then does not grow with
            `num_generations` or `per_device_train_batch_size`. `0`: one pass.
        shared_prefix (`str`, *optional*, defaults to `"auto"`):
            Whether a prompt is computed once for all of its completions: `"auto"` where that is cheaper, `"always"`
            wherever the model supports it, `"never"`. The result is the same.
        cast_lm_head_to_fp32 (`bool`, *optional*, defaults to `False`):
            Whether the heads of the policy and of the reference model are float32 and compute in it, as TRL's GRPO
            has it. For models in half precision.
        router_aux_loss_coef (`float`, *optional*):
            Coefficient of the load balancing loss of a mixture of experts, which is added to the loss. If not set, it
            is that of the model's config, as in TRL. `0.0`: without this loss.
    """

    _VALID_DICT_FIELDS: ClassVar = [*ExtConfig._VALID_DICT_FIELDS, "transformers_continuous_batching_config"]

    none_is_zero: ClassVar[tuple[str, ...]] = (
        *ExtConfig.none_is_zero,
        "vllm_max_model_length",
        "steps_per_generation",
    )

    use_transformers_continuous_batching: bool = field(
        default=False, metadata={"help": "Whether to generate completions with transformers' continuous batching."}
    )
    transformers_continuous_batching_config: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Keyword arguments for `transformers.generation.ContinuousBatchingConfig`."}
    )
    resample_steps: int = field(
        default=0,
        metadata={"help": "Generate new completions every this many optimizer steps. 0 means not by steps."},
    )
    steps_per_generation: int = field(
        default=0,
        metadata={"help": "`resample_steps` in TRL's unit, micro-batches: set one of the two. 0: not set."},
    )
    beta: float = field(
        default=0.0,
        metadata={
            "help": "Coefficient of the KL term that is subtracted from the score of a generated completion. 0 means "
            "no KL term and no reference model in memory."
        },
    )
    sync_ref_model: bool = field(
        default=False, metadata={"help": "Whether the reference model of the KL term follows the policy."}
    )
    ref_model_mixup_alpha: float = field(
        default=0.6, metadata={"help": "Share of the policy in the reference when `sync_ref_model` updates it."}
    )
    ref_model_sync_steps: int = field(
        default=512, metadata={"help": "Optimizer steps between two updates of the reference by `sync_ref_model`."}
    )
    vllm_structured_outputs_regex: str = field(
        default="", metadata={"help": "Regular expression that vLLM's completions match. Empty: none."}
    )
    multi_objective_aggregation: str = field(default=SUM, metadata=AGGREGATION)
    mask_truncated_completions: bool = field(
        default=False, metadata={"help": "Whether generated completions that were cut off are left out of the loss."}
    )
    completions_per_forward: int = field(
        default=0,
        metadata={
            "help": "Most completions in a forward pass: more of them are read in parts, twice, for the same gradient "
            "with less memory. 0 means all in one pass."
        },
    )
    shared_prefix: str = field(
        default="auto",
        metadata={
            "help": "Whether a prompt is computed once for all of its completions: 'auto' where that is cheaper, "
            "'always' wherever the model supports it, 'never'.",
            "choices": list(SHARED_PREFIX_SETTINGS),
        },
    )
    cast_lm_head_to_fp32: bool = field(
        default=False,
        metadata={"help": "Whether the heads of the policy and of the reference model are float32 and compute in it."},
    )
    router_aux_loss_coef: float | None = field(
        default=None,
        metadata={
            "help": "Coefficient of the load balancing loss of a mixture of experts. If not set, it is that of the "
            "model's config. 0 means without this loss."
        },
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.set_resample_steps()
        self._check_reference()
        self._check_parts()
        self._at_least("beta", 0)
        if self.router_aux_loss_coef is not None:
            self._at_least("router_aux_loss_coef", 0)
        self.check_vllm()
        if self.use_vllm and self.use_transformers_continuous_batching:
            raise ValueError("`use_vllm` and `use_transformers_continuous_batching` exclude each other.")
        if self.use_transformers_continuous_batching and self.repetition_penalty != 1:
            raise ValueError(
                "transformers' continuous batching does not apply `repetition_penalty`, since it sees only the last "
                "token of a text: leave out one of the two."
            )
        if self.use_transformers_continuous_batching and (
            self.cache_implementation or self.cuda_graphs == "always" or "num_beams" in (self.generation_kwargs or {})
        ):
            raise ValueError(
                "transformers' continuous batching has its own KV cache and CUDA graphs, and no beam search: leave "
                "`cache_implementation`, `cuda_graphs` and `num_beams` out."
            )
        if self.use_vllm:
            self._refuse_idle(["cast_for_generation"], "with `use_vllm`, which has weights of its own")
        if self.vllm_structured_outputs_regex and not self.use_vllm:
            raise ValueError("`vllm_structured_outputs_regex` has no effect without `use_vllm`.")

    def _check_parts(self) -> None:
        self._at_least("completions_per_forward", 0)
        optim = str(getattr(self.optim, "value", self.optim))
        if self.completions_per_forward and ("lomo" in optim or "layerwise" in optim):
            raise ValueError(
                f"`optim: {optim}` changes weights in the backward pass, and `completions_per_forward` has several of "
                "them in a step: choose another optimizer, or set `completions_per_forward: 0`."
            )

    def _check_reference(self) -> None:
        self._at_least("ref_model_sync_steps", 1)
        if not 0 <= self.ref_model_mixup_alpha <= 1:
            raise ValueError(f"`ref_model_mixup_alpha` must be between 0 and 1, got {self.ref_model_mixup_alpha}.")
        if self.sync_ref_model and not self.needs_reference(samples=True):
            raise ValueError("`sync_ref_model` needs a reference model, and no setting asks for one: set `beta`.")

    def needs_reference(self, samples: bool) -> bool:
        """
        Whether training has a reference model: with a KL term, which is for completions that training generates.

        Args:
            samples (`bool`): Whether training generates completions.
        """
        return samples and self.beta > 0


class Engine:
    """
    The generation backend that a trainer's config selects.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]): The policy.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): Its tokenizer.
        args ([`EngineConfig`]): The trainer's config.
        accelerator ([`~accelerate.Accelerator`]): The trainer's accelerator.

    Raises:
        `ValueError`: Continuous batching is set together with DeepSpeed or FSDP; or see [`VLLM`].
        `ImportError`: vLLM is not installed.
    """

    def __init__(
        self, model: Any, tokenizer: PreTrainedTokenizerBase, args: EngineConfig, accelerator: Accelerator
    ) -> None:
        self.tokenizer, self.args = tokenizer, args
        sharded = accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED)
        if sharded and args.use_transformers_continuous_batching:
            raise ValueError(
                "`use_transformers_continuous_batching` does not support models that DeepSpeed or FSDP has sharded: "
                "unset it."
            )
        self.batch_size = args.generation_batch_size or usual_batch_size(accelerator.device)
        self._vllm: VLLM | None = None
        self._closed = False
        if args.use_vllm:
            own = {"batch_size": self.batch_size, "trust_remote_code": args.trust_remote_code}
            settings = args.generation_settings()
            if args.eos_token:
                settings = stopping_at(settings, tokenizer.eos_token_id)
            self._vllm = VLLM(model, tokenizer, settings, args, accelerator, **own)  # type: ignore[arg-type]

    @property
    def gathers(self) -> bool:
        """Whether a sharded model is gathered for [`Engine.generate_function`]. vLLM gets its weights one by one."""
        return self.args.ds3_gather_for_generation and self._vllm is None

    def describe(self) -> str:
        """What generates completions, for people."""
        if self.args.use_vllm:
            return f"vLLM ({self.args.vllm_mode})"
        if self.args.use_transformers_continuous_batching:
            return "transformers' continuous batching"
        return describe_generate(self.args, self.batch_size)

    def close(self) -> None:
        """Shut vLLM down, before the process group that it uses is destroyed. It cannot generate afterwards."""
        if self._vllm is not None:
            self._vllm, self._closed = None, True
            gc.collect()  # vLLM shuts down when it is collected

    @contextmanager
    def generating(self, trainer: Trainer, mode: str = "train") -> Iterator[GenerateFunction]:
        """
        Context with a function that generates completions with the current model of a trainer.

        Args:
            trainer ([`~transformers.Trainer`]): The trainer.
            mode (`str`, *optional*, defaults to `"train"`): `"train"` or `"eval"`, which may generate other numbers of
                completions.
        """
        with (
            gathered(trainer.model_wrapped, trainer.accelerator, gather=self.gathers) as unwrapped,
            torch.no_grad(),
            trainer.compute_loss_context_manager(),
        ):
            yield self.generate_function(unwrapped, mode)

    def generate_function(self, model: Any, mode: str = "train") -> GenerateFunction:
        """
        A function that generates completions with the current weights of `model`, to be called without gradients.

        Args:
            model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]): The unwrapped policy.
            mode (`str`, *optional*, defaults to `"train"`): See [`generating`].

        Raises:
            `RuntimeError`: vLLM has been shut down.
        """
        if self._closed:
            raise RuntimeError("vLLM was shut down when the trainer ended: make a new trainer to generate with it.")
        settings = self.args.generation_settings(mode)
        if self._vllm is not None:
            self._vllm.sync_weights()
            return partial(self._vllm, num_generations=settings.num_generations)
        copy = sampling_copy(model, self.args)
        if self.args.use_transformers_continuous_batching:
            return lambda prompts: self._generate_continuously(copy, prompts, settings)
        return lambda prompts: self._generate(copy, prompts, settings)

    def _generate(
        self, model: PreTrainedModel, prompts: list[list[int]], settings: GenerationSettings
    ) -> list[list[Completion]]:
        try:
            return generate(model, self.tokenizer, prompts, settings, batch_size=self.batch_size)
        finally:
            release_static_caches(model)  # the next training step may need their memory

    def _generate_continuously(
        self, model: PreTrainedModel, prompts: list[list[int]], settings: GenerationSettings
    ) -> list[list[Completion]]:
        from transformers.generation import ContinuousBatchingConfig

        config = settings.generation_config(model, self.tokenizer, own_sampling=False)
        # The default of transformers (0.9) leaves no memory for the backward pass.
        given: Any = self.args.transformers_continuous_batching_config or {}
        kwargs = {"max_memory_percent": 0.5, **given}
        k = settings.num_generations
        with progress("sampling", len(prompts)) as phase, evaluation_mode(model):
            found = model.generate_batch(
                [list(prompt) for prompt in prompts for _ in range(k)],
                generation_config=config,
                continuous_batching_config=ContinuousBatchingConfig(**kwargs),
                progress_bar=False,
            )
            phase.advance(len(prompts))
        ids = [output.generated_tokens for output in found.values()]
        if len(ids) != k * len(prompts) or not all(ids):
            raise RuntimeError(
                f"Continuous batching returned {sum(map(bool, ids))} of {k * len(prompts)} completions. Give it more "
                "memory (`transformers_continuous_batching_config`), or unset it."
            )
        return decode_groups([list(x) for x in ids], prompts, self.tokenizer, config)
