# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""The reference model of a KL term, in the cheapest form that the policy allows."""

from typing import Any

import torch
from accelerate.utils import extract_model_from_parallel
from transformers import PreTrainedModel, Trainer

from .copies import independent_copy
from .frozen import sampling_batch_size
from .logprobs import LogProbs, completion_logps
from .models import adapter_disabled, freeze, is_peft_model, load_model
from .sharding import shard
from .upstream import disable_gradient_checkpointing


class Reference:
    """
    log pi_0 beside log pi: the policy's adapter switched off, the model that was given, or a frozen copy.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]): The policy, before training and before any
            distributed wrapper.
        ref_model ([`~transformers.PreTrainedModel`] or `str`, *optional*): The reference, or its directory or Hub id;
            see above without one.

    Raises:
        `ValueError`: `ref_model` is the policy itself.
    """

    def __init__(self, model: Any, ref_model: PreTrainedModel | str | None = None) -> None:
        if ref_model is model:
            raise ValueError("`ref_model` and `model` are the same object; leave `ref_model` out to have a copy made.")
        if isinstance(ref_model, str):
            ref_model = load_model(ref_model, dtype=model.dtype)
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
            log_probs ([`~trl_ext.logprobs.LogProbs`]): The trainer's.
            prompts (`list[list[int]]`): B prompts.
            completions (`list[list[list[int]]]`): For each prompt its completions; those of one go together.
        """
        batch_size = max(sampling_batch_size(trainer), *map(len, completions), 1)
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
