# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""The reference model of a KL term, in the cheapest form that the policy allows."""

from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import extract_model_from_parallel
from transformers import BitsAndBytesConfig, PreTrainedModel, Trainer

from trl_ext.logprobs.logprobs import LogProbs, completion_logps
from trl_ext.models.load import adapter_disabled, base_of, freeze, is_peft_model, is_quantized, load_model
from trl_ext.models.sharding import shard
from trl_ext.upstream import disable_gradient_checkpointing

from .config import ExtConfig
from .copies import independent_copy
from .model_loading import init_kwargs


if TYPE_CHECKING:
    from peft import PeftModel


# Completions that go through both models at once where `generation_batch_size` says none. Sampling takes more on a
# GPU, one new token of each; here whole texts with all of their states are in memory.
BATCH_SIZE = 64


class Reference:
    """
    log pi_0 beside log pi: the policy's adapter switched off, the model that was given, or a frozen copy.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]): The policy, before training and before any
            distributed wrapper.
        ref_model (`str`, [`~transformers.PreTrainedModel`] or [`~peft.PeftModel`], *optional*): The reference, or its
            directory or Hub id; see above without one.
        args ([`~trl_ext.training.config.ExtConfig`], *optional*): The trainer's config, which says how a reference
            that is named is loaded: as the policy is, in the policy's dtype unless `model_init_kwargs` has another.
            Their `revision` counts only where the reference has the policy's name.
        quantization_config ([`~transformers.BitsAndBytesConfig`], *optional*): For a reference that is named.

    Raises:
        `TypeError`: `ref_model` is neither a model nor a name.
        `ValueError`: `ref_model` is the policy itself.
    """

    def __init__(
        self,
        model: Any,
        ref_model: "str | PreTrainedModel | PeftModel | None" = None,
        args: ExtConfig | None = None,
        quantization_config: BitsAndBytesConfig | None = None,
    ) -> None:
        if ref_model is model:
            raise ValueError("`ref_model` and `model` are the same object; leave `ref_model` out to have a copy made.")
        if isinstance(ref_model, str):
            ref_model = _load(ref_model, model, args, quantization_config)
        elif ref_model is not None and not isinstance(ref_model, torch.nn.Module):
            raise TypeError(
                f"`ref_model` must be a model, or its directory or Hub id as text, got `{type(ref_model).__name__}`."
            )
        self.model: Any = None
        if ref_model is not None or not is_peft_model(model):
            self.model = freeze(independent_copy(model) if ref_model is None else ref_model)
            self.log_probs: LogProbs | None = None  # its own: its attention may differ from the policy's

    def place(self, trainer: Trainer) -> None:
        """Put a model of our own where the policy is, sharded as the policy is."""
        if self.model is None:
            return
        if trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled:
            self.model = shard(self.model, trainer)
        else:
            self.model = trainer.accelerator.prepare_model(self.model, evaluation_mode=True)

    def _builder(self, policy: LogProbs) -> LogProbs:
        if self.log_probs is None:
            model = extract_model_from_parallel(self.model)
            self.log_probs = LogProbs(model, policy.pad_token_id, shared_prefix=policy.shared_prefix)
        return self.log_probs

    def log_ratios(
        self,
        trainer: Trainer,
        log_probs: LogProbs,
        prompts: list[list[int]],
        completions: list[list[list[int]]],
    ) -> list[list[float]]:
        """
        log pi(y | x) - log pi_0(y | x) of each completion, in nats; its mean over samples of pi is the KL divergence.

        Args:
            trainer ([`~transformers.Trainer`]): Whose model is the policy.
            log_probs ([`~trl_ext.logprobs.logprobs.LogProbs`]): The trainer's.
            prompts (`list[list[int]]`): B prompts.
            completions (`list[list[list[int]]]`): For each prompt its completions; those of one go together.
        """
        batch_size = max(trainer.args.generation_batch_size or BATCH_SIZE, *map(len, completions), 1)
        policy = trainer.accelerator.unwrap_model(trainer.model)

        def logps(model: torch.nn.Module, builder: LogProbs) -> list[list[torch.Tensor]]:
            return completion_logps(
                model,
                prompts,
                completions,
                pad_token_id=log_probs.pad_token_id,
                batch_size=batch_size,
                log_probs=builder,
            )

        with disable_gradient_checkpointing(policy, trainer.args.gradient_checkpointing_kwargs):
            own = logps(trainer.model_wrapped, log_probs)
            if self.model is None:
                with adapter_disabled(policy):
                    reference = logps(trainer.model_wrapped, log_probs)
            else:
                reference = logps(self.model, self._builder(log_probs))
        return [
            [float((p - q).sum()) for p, q in zip(group, others, strict=True)]
            for group, others in zip(own, reference, strict=True)
        ]


def _load(name: str, policy: Any, args: ExtConfig | None, quantization_config: BitsAndBytesConfig | None) -> Any:
    kwargs = init_kwargs(args, args.model_init_kwargs, quantization_config) if args is not None else {}
    if name != base_of(policy).name_or_path:
        kwargs.pop("revision", None)  # of another repository
    if kwargs.get("quantization_config") is None and is_quantized(base_of(policy)):
        kwargs["quantization_config"] = base_of(policy).config.quantization_config
    if kwargs.get("quantization_config") is None:
        kwargs.setdefault("dtype", policy.dtype)
    return load_model(name, **kwargs)
