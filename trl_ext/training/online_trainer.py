# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Base class of trainers whose model generates completions and is trained on them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import BitsAndBytesConfig, TrainingArguments
from transformers.utils import logging

from trl_ext.data.completion import Completion
from trl_ext.data.schema import AnyDataset
from trl_ext.logprobs.balancing_loss import router_aux_loss_coef
from trl_ext.logprobs.logprobs import LogProbs
from trl_ext.models.float32_head import cast_head_to_float32
from trl_ext.models.properties import context_length, embedding_rows, is_peft_model
from trl_ext.rewards.aggregation import check_aggregation

from .engine import Engine, EngineConfig
from .model_loading import load_policy
from .reference import Reference
from .rollouts import Round, score_round
from .rounds import RolloutSchedule
from .summary import Run
from .trainer import ExtTrainer


logger = logging.get_logger(__name__)

REFERENCE = "reference.safetensors"  # in checkpoints: the weights of a reference that follows the policy


class OnlineTrainer(ExtTrainer):
    """
    Base class of trainers whose model generates completions and is trained on them.

    It loads the policy, its reference model for a KL term (`beta`) and a generation backend, and gives each optimizer
    step the completions of the current round. A subclass has `_sample_round` in addition to what
    [`~trl_ext.training.trainer.ExtTrainer`] asks for.

    Args:
        model (`str`, [`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]): The policy.
        args ([`~trl_ext.training.engine.EngineConfig`]): The config that `_config_for` returned.
        train_dataset ([`~datasets.Dataset`] or [`~datasets.IterableDataset`]): Tokenized rows.
        eval_dataset ([`~datasets.Dataset`], [`~datasets.IterableDataset`] or a `dict` of them, *optional*): Likewise.
        ref_model (`str`, [`~transformers.PreTrainedModel`] or [`~peft.PeftModel`], *optional*): The reference model.
        quantization_config ([`~transformers.BitsAndBytesConfig`], *optional*): For models given by name.
        peft_config ([`~peft.PeftConfig`], *optional*): Adapter to train.
        epochs_per_round (`int`, *optional*, defaults to `0`): Epochs after which the whole dataset gets new
            completions, unless `args.resample_steps` is set (`0`: it gets them once).
        kwargs: Further arguments of [`~transformers.Trainer`].
    """

    args: EngineConfig
    engine: Engine
    _rounds: RolloutSchedule
    _reference_is_for = "a KL term (`beta`)"  # the settings with which there is a reference model
    # `compute_loss` divides by the prompts of all micro-batches and processes of a step.
    loss_is_scaled_for_ga = True

    def __init__(
        self,
        model: Any,
        args: EngineConfig,
        *,
        train_dataset: AnyDataset,
        eval_dataset: Any = None,
        ref_model: Any = None,
        quantization_config: BitsAndBytesConfig | None = None,
        peft_config: Any = None,
        epochs_per_round: int = 0,
        **kwargs: Any,
    ) -> None:
        if isinstance(ref_model, TrainingArguments):
            raise TypeError(
                "`ref_model` is a config: pass it as `args=...`. As in DPOTrainer, `ref_model` comes second."
            )
        self._given_ref_model = ref_model if isinstance(ref_model, torch.nn.Module) else None
        model = load_policy(model, args, quantization_config, peft_config)
        _check_learning_rate(model, args)
        self._check_end_of_answers(model, args, train_dataset)
        self._embeddings = embedding_rows(model)
        train_dataset, eval_dataset = self._check_context_lengths(
            train_dataset, eval_dataset, args, context_length(model)
        )
        model.config.get_text_config().pad_token_id = self._tokenizer.pad_token_id
        model.generation_config.pad_token_id = self._tokenizer.pad_token_id
        if args.cast_lm_head_to_fp32:
            cast_head_to_float32(model)
        self.router_aux_loss_coef = router_aux_loss_coef(model, args.router_aux_loss_coef)
        self.reference = self._load_reference(model, ref_model, args, quantization_config)
        self.log_probs = LogProbs(
            model,
            self._tokenizer.pad_token_id,
            completions_per_forward=args.completions_per_forward,
            shared_prefix=args.shared_prefix,
            pad_to_multiple_of=args.pad_to_multiple_of,  # type: ignore[arg-type]  # a number since it was checked
        )
        super().__init__(model, args, train_dataset=train_dataset, eval_dataset=eval_dataset, **kwargs)
        if self.reference is not None:
            self.reference.place(self)
            if args.sync_ref_model:
                self._add_own_callback(self.reference.sync_callback(self))
        self.engine = Engine(self.model, self._tokenizer, args, self.accelerator)
        self._rounds = RolloutSchedule(
            lambda rows: self._sample_round(rows).rollouts,
            self.accelerator,
            every_steps=args.resample_steps,
            every_epochs=epochs_per_round,
        )

    def _setup(self, model: Any, args: Any, *more: Any) -> AnyDataset:
        dataset = super()._setup(model, args, *more)
        check_aggregation(args.multi_objective_aggregation, self.reward_func_names)
        return dataset

    @property
    def ref_model(self) -> Any:
        """The separate reference model, if there is one; without a KL term, the model that was passed."""
        return self._given_ref_model if self.reference is None else self.reference.model

    @property
    def beta(self) -> float:
        """The coefficient of the KL term."""
        return self.args.beta

    def end(self) -> None:
        """See [`~transformers.Trainer.end`]. vLLM is shut down first: it uses the process group that this destroys."""
        self.engine.close()
        super().end()

    def _load_reference(
        self, model: Any, ref_model: Any, args: EngineConfig, quantization_config: BitsAndBytesConfig | None
    ) -> Reference | None:
        if args.beta and not self._samples:
            logger.warning("`beta` is ignored: the KL term is for completions that are generated in training.")
        if args.needs_reference(self._samples):
            reference = Reference(model, ref_model, args, quantization_config)
            if args.cast_lm_head_to_fp32 and reference.model is not None:
                cast_head_to_float32(reference.model)
            return reference
        if ref_model is not None:
            logger.warning(f"`ref_model` is not used: {self._name} needs it only for {self._reference_is_for}.")
        return None

    def _generation_context(self, args: EngineConfig) -> int:
        return args.vllm_context(self._context)

    def _save_state(self, folder: Path) -> None:
        if self.reference is not None and self.args.sync_ref_model and self.accelerator.is_main_process:
            self.reference.save(folder / REFERENCE)

    def _restore_state(self, folder: Path | None) -> None:
        """
        Restore a reference model that has followed the policy.

        Raises:
            `ValueError`: `sync_ref_model` is not what it was when the checkpoint was saved.
        """
        if folder is None or self.reference is None:
            return
        followed = (folder / REFERENCE).is_file()
        if followed != self.args.sync_ref_model:
            word = "with" if followed else "without"
            raise ValueError(f"The checkpoint {str(folder)!r} was saved {word} `sync_ref_model`: resume {word} it.")
        if not followed:
            return
        self.reference.load(folder / REFERENCE)

    def _summary(self, run: Run) -> dict[str, str]:
        lines = super()._summary(run)
        if self.args.completions_per_forward:
            lines["step"] += f", at most {self.args.completions_per_forward} completions in a forward pass"
        if self._samples:
            lines["engine"] = self.engine.describe()
        if self.reference is not None:
            kl_term = f", beta {self.args.beta:g}" if self.args.beta else ""
            lines["reference"] = f"{self.reference.describe()}{kl_term}"
        return lines

    # --------------------------------------------------------------------------------------------------- sampling

    def _kept(self, batch: dict[str, Any]) -> list[int]:
        """Indices of the prompts of a batch that its loss is a mean over: those with completions."""
        return [b for b, group in enumerate(batch["completion_ids"]) if group]

    def _batches_of_step(
        self, epoch_iterator: Iterator[dict[str, Any]], num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, Any]], int | None]:
        """
        The micro-batches of one optimizer step, with completions, and the prompts in them that have a loss.

        The number of prompts is that of all processes.
        """
        if self._samples:
            epoch = int(self.state.epoch or 0)
            batches = self._rounds.batches(epoch_iterator, num_batches, epoch, self.train_dataset)
        else:
            batches, _ = super()._batches_of_step(epoch_iterator, num_batches, device)
        if not batches:
            return batches, None
        return batches, max(1, self._over_processes(sum(len(self._kept(batch)) for batch in batches)))

    def _score(
        self, rows: list[dict[str, Any]], completions: list[list[Completion]], mode: str, **kwargs: Any
    ) -> Round:
        """Score the completions of a round, with the KL term if there is one; see [`score_round`] for `kwargs`."""
        has_kl_term = self.reference is not None and self.args.beta > 0 and mode == "train"
        return score_round(
            rows,
            completions,
            self.rewards,
            self.args.reward_weights,
            aggregation=self.args.multi_objective_aggregation,
            max_length=self.args.max_length,
            tokenizer=self._tokenizer,
            penalty=self._kl_penalty if has_kl_term else None,
            keep_truncated=not self.args.mask_truncated_completions or mode != "train",
            **self._scoring,
            **kwargs,
        )

    def _kl_penalty(self, prompts: list[list[int]], completions: list[list[list[int]]]) -> list[list[float]]:
        """beta * (log pi(y | x) - log pi_0(y | x)) of each completion."""
        assert self.reference is not None
        ratios = self.reference.log_ratios(self, self.log_probs, prompts, completions)
        # Only completions that were sampled from pi(y | x) estimate the KL divergence: a method puts them first.
        sampled = [ratio for group in ratios for ratio in group[: self.args.completions_per_prompt()]]
        self._meters["train"].add_values("kl", torch.tensor(sampled))
        return [[self.args.beta * ratio for ratio in group] for group in ratios]


def _check_learning_rate(model: Any, args: EngineConfig) -> None:
    """
    Warn about LoRA at a learning rate for all weights, which the defaults are.

    TRL's page on PEFT and "LoRA Without Regret" (Schulman et al., 2025) take about ten times as much.
    """
    default = type(args).learning_rate
    is_lora = is_peft_model(model) and model.active_peft_config.peft_type == "LORA"
    if is_lora and args.learning_rate <= default:
        logger.warning(
            f"`learning_rate` is {args.learning_rate:g}, a rate for training all weights (default: {default:g}). "
            f"LoRA usually takes about ten times as much: set it to {10 * default:g}, for example."
        )
