# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Trainer of RRHF: learns from scored completions of a dataset, or from completions that it generates and scores."""

import textwrap
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from datasets import Dataset, IterableDataset
from transformers import (
    BitsAndBytesConfig,
    DataCollator,
    EvalPrediction,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainerCallback,
)
from transformers.utils import logging

from trl_ext.data.schema import AnyDataset, DataError, column_names
from trl_ext.data.scored_rows import REWARD_FLAGS, lacks_completions
from trl_ext.logprobs.token_logps import TokenLogps
from trl_ext.rewards.functions import RewardFunc
from trl_ext.training.online_trainer import OnlineTrainer
from trl_ext.training.predictions import completion_table
from trl_ext.training.rollouts import Round
from trl_ext.training.rounds import resample_stream
from trl_ext.training.summary import Run
from trl_ext.training.trainer import EvalDataset

from .config import RRHFConfig
from .data import DataCollatorForScoredCompletions, group_index
from .losses import best_completion, kendall_tau, normalized_logps, pair_accuracy, sft_loss
from .ranking_registry import RRHF


if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel

logger = logging.get_logger(__name__)


class RRHFTrainer(OnlineTrainer):
    """
    Trainer for Rank Responses to align Human Feedback (RRHF).

    The method is described in [RRHF: Rank Responses to Align Language Models with Human Feedback without
    tears](https://huggingface.co/papers/2304.05302).

    Args:
        model (`str`, [`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            Model to be trained: a Hub id, a directory, or a model.
        ref_model (`str`, [`~transformers.PreTrainedModel`] or [`~peft.PeftModel`], *optional*):
            Reference of the KL term (`beta > 0`) and of `ranking_reference: policy`: a model, or a directory or Hub
            id, which is loaded as `model` is (`trust_remote_code`, `model_init_kwargs`, `quantization_config`). By
            default `model` as it is when training begins: a frozen copy, or the weights of its adapter as they were.
            With neither setting no reference is kept.
        args ([`RRHFConfig`], *optional*):
            Configuration; the defaults are the paper's.
        data_collator (`DataCollator`, *optional*):
            Defaults to [`~trl_ext.methods.rrhf.data.DataCollatorForScoredCompletions`].
        train_dataset ([`~datasets.Dataset`] or [`~datasets.IterableDataset`]):
            Rows `prompt`, `completions`, `scores` (K may differ from row to row, scores may tie); or `prompt`,
            `chosen`, `rejected` as for DPO; or, with `reward_funcs`, only `prompt`. Plain text or messages.
        eval_dataset ([`~datasets.Dataset`], [`~datasets.IterableDataset`] or a `dict` of them, *optional*):
            The same. On rows with scores, `evaluate()` reports how often the policy's own log-probabilities order two
            completions as the scores do; on a prompt-only dataset, the rewards of the policy's completions.
        processing_class ([`~transformers.PreTrainedTokenizerBase`], *optional*):
            Tokenizer; by default the model's.
        compute_metrics (`Callable`, *optional*):
            Called at evaluation with predictions p (Eq. (1), minus the reference's with `ranking_reference: policy`)
            and label_ids the scores, both of shape (rows, K) and NaN where a row has fewer completions.
        callbacks (`list` of [`~transformers.TrainerCallback`], *optional*):
            Callbacks to add.
        optimizers (`tuple`, *optional*, defaults to `(None, None)`):
            Optimizer and scheduler to use.
        quantization_config ([`~transformers.BitsAndBytesConfig`], *optional*):
            Quantisation for a `model` given by name (QLoRA, with `peft_config`).
        peft_config ([`~peft.PeftConfig`], *optional*):
            Adapter to train.
        reward_funcs (`str`, `Callable`, [`~transformers.PreTrainedModel`] or a `list` of these, *optional*):
            Reward functions as in TRL's GRPO, for completions that the policy generates as the config says.
        reward_processing_classes (`list`, *optional*):
            Tokenizers of the reward models.

    Raises:
        `ValueError`, `TypeError`: Arguments contradict each other.
        [`~trl_ext.data.schema.DataError`]: A row or column cannot be used.

    Examples:
    ```python
    >>> from datasets import load_dataset
    >>> from trl_ext import RRHFConfig, RRHFTrainer

    >>> trainer = RRHFTrainer(
    ...     model="Qwen/Qwen2.5-0.5B-Instruct",
    ...     args=RRHFConfig(output_dir="rrhf"),
    ...     train_dataset=load_dataset("json", data_files="scored.jsonl", split="train"),
    ... )
    >>> trainer.train()
    ```
    """

    args: RRHFConfig
    _config_class: ClassVar[type[RRHFConfig]] = RRHFConfig
    _tag_names: ClassVar = ["trl", "trl-ext", "rrhf"]
    _name = "RRHF"
    _reference_is_for = "a KL term (`beta`) or the ranking loss (`ranking_reference: policy`)"
    _paper: ClassVar = {
        "title": "RRHF: Rank Responses to Align Language Models with Human Feedback without tears",
        "id": "2304.05302",
        # docstyle-ignore
        "citation": textwrap.dedent("""\
            @inproceedings{yuan2023rrhf,
                title        = {{RRHF: Rank Responses to Align Language Models with Human Feedback without tears}},
                author       = {Hongyi Yuan and Zheng Yuan and Chuanqi Tan and Wei Wang and Songfang Huang and
                                Fei Huang},
                year         = 2023,
                booktitle    = {Advances in Neural Information Processing Systems 36},
            }"""),
    }

    def __init__(
        self,
        model: "str | PreTrainedModel | PeftModel",
        ref_model: "str | PreTrainedModel | PeftModel | None" = None,
        args: RRHFConfig | None = None,
        data_collator: DataCollator | None = None,
        train_dataset: AnyDataset | None = None,
        eval_dataset: EvalDataset | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        compute_metrics: Callable[[EvalPrediction], dict] | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[torch.optim.Optimizer | None, torch.optim.lr_scheduler.LambdaLR | None] = (None, None),
        quantization_config: BitsAndBytesConfig | None = None,
        peft_config: "PeftConfig | None" = None,
        reward_funcs: RewardFunc | list[RewardFunc] | None = None,
        reward_processing_classes: PreTrainedTokenizerBase | list[PreTrainedTokenizerBase | None] | None = None,
    ):
        args = self._config_for(model, args)
        # Data and rewards before the model: a mistake there should not cost the time of loading weights.
        train_dataset = self._setup(
            model, args, train_dataset, processing_class, reward_funcs, reward_processing_classes
        )
        train_dataset, eval_dataset = self._prepare_datasets(train_dataset, eval_dataset, args)
        self._samples = self._check_sampling(args, train_dataset, reward_funcs)
        self._check_evaluation(eval_dataset, reward_funcs)
        self.ranking = args.ranking
        super().__init__(
            model,
            args,
            data_collator=data_collator or DataCollatorForScoredCompletions(),
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            compute_metrics=compute_metrics,
            callbacks=callbacks,
            optimizers=optimizers,
            ref_model=ref_model,
            quantization_config=quantization_config,
            peft_config=peft_config,
            epochs_per_round=args.resample_epochs,
        )

    # ------------------------------------------------------------------------------------------------ preparation

    @staticmethod
    def _check_sampling(args: RRHFConfig, dataset: AnyDataset, reward_funcs: Any) -> bool:
        """Whether training generates completions. Raises an error if the settings contradict the data."""
        has_completions = "completion_ids" in (dataset.column_names or next(iter(dataset)))
        resamples = bool(args.resample_steps or args.resample_epochs)
        if resamples and not reward_funcs:
            raise ValueError(
                f"`resample_steps` and `resample_epochs` need `reward_funcs` {REWARD_FLAGS} to score new completions."
            )
        if args.use_vllm and not reward_funcs:
            raise ValueError(
                f"`use_vllm` needs `reward_funcs` {REWARD_FLAGS}: without them, no completions are generated."
            )
        if not has_completions and not reward_funcs:
            raise lacks_completions(column_names(dataset), "train")
        if args.keep_dataset_completions and not has_completions:
            raise DataError("`keep_dataset_completions` is set, but the train dataset has no completions.")
        samples = resamples or not has_completions
        if reward_funcs and not samples:
            logger.warning(
                "The train dataset has completions and neither `resample_steps` nor `resample_epochs` is set: "
                "`reward_funcs` are used in evaluation only."
            )
        compares = args.rank_weight and not args.ranking.member.is_pointwise
        ranks = isinstance(dataset, Dataset) and not samples and compares
        if ranks and all(len(ids) < 2 for ids in dataset["completion_ids"]):
            logger.warning("Every row has one completion: there are no pairs to rank, and only the SFT loss is left.")
        if isinstance(dataset, IterableDataset) and args.resample_epochs:
            raise ValueError("A streamed dataset cannot be resampled by epochs: set `resample_steps`.")
        if samples:
            resample_stream(args, dataset)
        return samples

    @staticmethod
    def _check_evaluation(dataset: Any, reward_funcs: Any) -> None:
        """Raise a `DataError` before training, not at its first evaluation, for completions that nothing can score."""
        for name, part in (dataset if isinstance(dataset, dict) else {"eval": dataset}).items():
            columns = column_names(part) if part is not None else []
            if columns and not reward_funcs and "completion_ids" not in columns:
                raise lacks_completions(columns, name)

    def _completions_in_step(self, in_dataset: int) -> int:
        if self._samples and self.args.keep_dataset_completions:
            return in_dataset + self.args.completions_per_prompt()
        return super()._completions_in_step(in_dataset)

    def _summary(self, run: Run) -> dict[str, str]:
        lines = super()._summary(run)
        if self.ranking.member is not RRHF or self.args.ranking_reference != "none":
            of = ", of log-ratios to the reference" if self.args.ranking_reference == "policy" else ""
            lines["ranking"] = self.ranking.describe() + of
        return lines

    # --------------------------------------------------------------------------------------------------- sampling

    def _sample_round(self, rows: list[dict[str, Any]], mode: str = "train") -> Round:
        with self._seeded(mode), self.engine.generating(self, mode) as generate:
            completions = generate([row["prompt_ids"] for row in rows])
        keep = self.args.keep_dataset_completions and mode == "train"
        sampled = self._score(rows, completions, mode, keep_dataset_completions=keep)
        self._log_round(sampled, mode)
        return sampled

    # ------------------------------------------------------------------------------------------------------- loss

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """
        Eq. (5): L = rank_weight * L_rank + sft_weight * L_ft, averaged over prompts. `ranking_loss` chooses L_rank.

        With `num_items_in_batch`, the number of prompts in all micro-batches and processes of a step, the sum over
        this batch is divided by that number, so the gradient depends neither on accumulation nor on unequal batches.
        """
        kept = self._kept(inputs)
        if not kept:
            # Where processes share a sharded reference, each has to run it.
            self._reference_logps(inputs["prompt_ids"][:1], [[[self._tokenizer.pad_token_id]]])
            loss = self._zero_loss(partial(self.log_probs, model), inputs)
            nothing = {name: loss.new_empty(0) for name in ("p", "scores")}
            return (loss, nothing) if return_outputs else loss
        prompts = [inputs["prompt_ids"][b] for b in kept]
        completions = [inputs["completion_ids"][b] for b in kept]
        reference_N = self._reference_logps(prompts, completions)
        tokens = self.log_probs(model, prompts, completions, aux_loss=self.aux_loss_enabled)
        device = tokens.logps.device
        scores = [score for b in kept for score in inputs["scores"][b]]
        scores_N = torch.tensor(scores, dtype=torch.float32, device=device)  # the dataset's may be whole numbers
        group_N = torch.tensor(group_index(completions), device=device)
        sums_N, lengths_N = tokens.sums(), tokens.lengths()
        logps_N = normalized_logps(sums_N, lengths_N, self.ranking.length_penalty)
        p_N = logps_N - reference_N
        rank_B = self.ranking(p_N, scores_N, group_N, len(kept))
        best_B = best_completion(scores_N, group_N, len(kept))
        sft_B = sft_loss(sums_N, lengths_N, best_B, self.args.sft_reduction)
        loss_B = self.args.rank_weight * rank_B + self.args.sft_weight * sft_B
        self._measure(tokens, logps_N, p_N, scores_N, group_N, best_B, rank_B, sft_B)
        self._add_tokens(prompts, completions)
        loss = self._mean(loss_B.sum(), len(loss_B), num_items_in_batch)
        loss = self._with_aux_loss(loss, tokens, num_items_in_batch)
        loss = self._through_parts(loss, tokens)
        return (loss, {"p": p_N, "scores": scores_N, "group": group_N}) if return_outputs else loss

    def _reference_logps(self, prompts: list[list[int]], completions: list[list[list[int]]]) -> torch.Tensor | float:
        """Eq. (1) for the reference -> (N,): 0 if the ranking loss has none. Before the policy's own forward pass."""
        if self.args.ranking_reference == "none":
            return 0.0
        assert self.reference is not None
        tokens = self.reference.token_logps(self, self.log_probs, prompts, completions)
        return normalized_logps(tokens.sums(), tokens.lengths(), self.ranking.length_penalty)

    @torch.no_grad()
    def _measure(
        self,
        tokens: TokenLogps,
        logps_N: torch.Tensor,
        p_N: torch.Tensor,
        scores_N: torch.Tensor,
        group_N: torch.Tensor,
        best_B: torch.Tensor,
        rank_B: torch.Tensor,
        sft_B: torch.Tensor,
    ) -> None:
        meters = self._meters[self._mode]
        num_prompts = len(best_B)
        # Log-ratios that are rounding alone, as all are before the first step, are ties.
        p_N = p_N * (p_N.abs() > 1e-5 * logps_N.abs())
        meters.add_values("loss/rank", rank_B)
        meters.add_values("loss/sft", sft_B)
        meters.add("rewards/accuracies", *pair_accuracy(p_N, scores_N, group_N))
        meters.add_values("kendall_tau", kendall_tau(p_N, scores_N, group_N, num_prompts))
        is_best_N = torch.zeros_like(p_N, dtype=torch.bool)
        is_best_N[best_B] = True

        def of_others(values_N: torch.Tensor) -> torch.Tensor:
            total_B = values_N.new_zeros(num_prompts).index_add(0, group_N, values_N * ~is_best_N)
            return total_B / (torch.bincount(group_N, minlength=num_prompts) - 1)  # NaN where K = 1

        meters.add_values("logps/chosen", logps_N[best_B])
        meters.add_values("logps/rejected", of_others(logps_N))
        meters.add_values("rewards/margins", p_N[best_B] - of_others(p_N))
        meters.add_values("logps/mean", logps_N)
        self._measure_tokens(tokens)

    # ------------------------------------------------------------------------------------------------- evaluation

    def prediction_step(
        self, model: torch.nn.Module, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: Any = None
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        if not any(inputs["completion_ids"]):
            if not self.rewards:
                raise DataError("The eval dataset has prompts but no completions, and there are no `reward_funcs`.")
            rollouts = self._sample_evaluation(inputs["rows"])
            inputs["completion_ids"] = [rollout.completion_ids for rollout in rollouts]
            inputs["scores"] = [rollout.scores for rollout in rollouts]
        with torch.no_grad(), self.compute_loss_context_manager():
            loss, outputs = self.compute_loss(model, inputs, return_outputs=True)
        if prediction_loss_only:
            return loss.detach(), None, None
        columns = [range(len(group)) for group in inputs["completion_ids"]]
        p, scores = (completion_table(outputs[name], columns, self._eval_width) for name in ("p", "scores"))
        return loss.detach(), p, scores
