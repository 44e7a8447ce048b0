# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""The trainer of RRHF: rows of scored completions in, ranking and SFT losses out, with or without resampling."""

import textwrap
from collections.abc import Callable, Iterator
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
    set_seed,
)
from transformers.utils import logging

from trl_ext.data.schema import AnyDataset, DataError, column_names
from trl_ext.data.tokenization import prepare_dataset
from trl_ext.logprobs.logprobs import LogProbs, TokenLogps
from trl_ext.models.load import context_length
from trl_ext.rewards.functions import RewardFunc
from trl_ext.training.engine import Engine
from trl_ext.training.model_loading import load_policy
from trl_ext.training.reference import Reference
from trl_ext.training.rollouts import Round, score_round
from trl_ext.training.rounds import Rounds
from trl_ext.training.trainer import EvalDataset, ExtTrainer
from trl_ext.upstream import get_config_model_id

from .config import RRHFConfig
from .data import DataCollatorForScoredCompletions, group_index
from .losses import best_completion, kendall_tau, normalized_logps, pair_accuracy, ranking_loss, sft_loss


if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel

logger = logging.get_logger(__name__)


def _scored(dataset: Dataset) -> bool:
    return "scores" in dataset.column_names


class RRHFTrainer(ExtTrainer):
    """
    Trainer for Rank Responses to align Human Feedback (RRHF).

    The method is described in [RRHF: Rank Responses to Align Language Models with Human Feedback without
    tears](https://huggingface.co/papers/2304.05302).

    Args:
        model (`str`, [`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            Model to be trained: a Hub id, a directory, or a model.
        ref_model (`str`, [`~transformers.PreTrainedModel`] or [`~peft.PeftModel`], *optional*):
            Reference of the KL term (`beta > 0`): a model, or a directory or Hub id, which is loaded as `model` is
            (`trust_remote_code`, `model_init_kwargs`, `quantization_config`). By default the adapter switched off, or
            a frozen copy of `model`.
            Without a KL term no reference is kept.
        args ([`RRHFConfig`], *optional*):
            Configuration; the defaults are the paper's.
        data_collator (`DataCollator`, *optional*):
            Defaults to [`~trl_ext.methods.rrhf.data.DataCollatorForScoredCompletions`].
        train_dataset ([`~datasets.Dataset`] or [`~datasets.IterableDataset`]):
            Rows `prompt`, `completions`, `scores` (K may differ from row to row, scores may tie); or `prompt`,
            `chosen`, `rejected` as for DPO; or, with `reward_funcs`, `prompt` alone. Plain text or messages.
        eval_dataset ([`~datasets.Dataset`], [`~datasets.IterableDataset`] or a `dict` of them, *optional*):
            The same. On rows with scores, `evaluate()` reports how often the policy's own log-probabilities order two
            completions as the scores do; on prompts alone, the rewards of what the policy writes.
        processing_class ([`~transformers.PreTrainedTokenizerBase`], *optional*):
            Tokenizer; by default the model's.
        compute_metrics (`Callable`, *optional*):
            Called at evaluation with predictions p (Eq. (1)) and label_ids the scores, both of shape (rows, K) and NaN
            where a row has fewer completions.
        callbacks (`list` of [`~transformers.TrainerCallback`], *optional*):
            Callbacks to add.
        optimizers (`tuple`, *optional*, defaults to `(None, None)`):
            Optimizer and scheduler to use.
        quantization_config ([`~transformers.BitsAndBytesConfig`], *optional*):
            Quantisation for a `model` given by name (QLoRA, with `peft_config`).
        peft_config ([`~peft.PeftConfig`], *optional*):
            Adapter to train.
        reward_funcs (`str`, `Callable`, [`~transformers.PreTrainedModel`] or a `list` of these, *optional*):
            Reward functions as in TRL's GRPO; completions are then resampled as the config says.
        reward_processing_classes (`list`, *optional*):
            Tokenizers of the reward models.

    Raises:
        `ValueError`, `TypeError`: Arguments that contradict each other; the message says which.
        [`~trl_ext.data.schema.DataError`]: A row or column that cannot be used.

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
    engine: Engine
    _config_class: ClassVar[type[RRHFConfig]] = RRHFConfig
    _tag_names: ClassVar = ["trl", "trl-ext", "rrhf"]
    _name = "RRHF"
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
    _rounds: Rounds
    # `compute_loss` divides by the prompts of all micro-batches and processes of a step.
    loss_is_scaled_for_ga = True

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
        name = model if isinstance(model, str) else get_config_model_id(model.config)
        if args is None:
            args = self._config_class(f"{name.rstrip('/').split('/')[-1]}-RRHF")
        self._check_config(args)
        self._check_train_dataset(train_dataset, args)
        set_seed(args.seed)  # an adapter's initial weights are random
        self._tokenizer = self._load_tokenizer(name, model, args, processing_class)

        # Data and rewards before the model: a mistake there should not cost the time of loading weights.
        self.rewards = self._load_rewards(reward_funcs, reward_processing_classes, args)
        self._raw_columns = set(column_names(train_dataset)) if reward_funcs else set()
        train_dataset = self._prepare_dataset(train_dataset, args, "train")
        eval_dataset = self._prepare_eval_dataset(eval_dataset, args)
        self._samples = self._check_sampling(args, train_dataset, reward_funcs)
        self._check_evaluation(eval_dataset, reward_funcs)

        model = load_policy(model, args, quantization_config, peft_config)
        train_dataset, eval_dataset = self._check_context(train_dataset, eval_dataset, args, context_length(model))
        model.config.get_text_config().pad_token_id = self._tokenizer.pad_token_id
        model.generation_config.pad_token_id = self._tokenizer.pad_token_id
        self.reference = self._load_reference(model, ref_model, args, quantization_config)
        self.log_probs = LogProbs(
            model,
            self._tokenizer.pad_token_id,
            shared_prefix=args.shared_prefix,
            pad_to_multiple_of=args.pad_to_multiple_of,
        )

        super().__init__(
            model=model,
            args=args,
            data_collator=data_collator or DataCollatorForScoredCompletions(),
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=self._tokenizer,
            compute_metrics=compute_metrics,
            callbacks=callbacks,
            optimizers=optimizers,
        )
        if self.reference is not None:
            self.reference.place(self)
        self.engine = Engine(self.model, self._tokenizer, args, self.accelerator)
        self._rounds = Rounds(
            lambda rows: self._sample_round(rows).rollouts,
            self.accelerator,
            every_steps=args.resample_steps,
            every_epochs=args.resample_epochs,
        )
        self._eval_width = 0
        self._begin_metrics()

    # ------------------------------------------------------------------------------------------------ preparation

    def _tokenize(self, dataset: AnyDataset, args: RRHFConfig, name: str) -> tuple[AnyDataset, int]:
        return prepare_dataset(
            dataset, self._tokenizer, name=name, max_length=args.max_length, num_proc=args.dataset_num_proc
        )

    @staticmethod
    def _check_sampling(args: RRHFConfig, dataset: AnyDataset, reward_funcs: Any) -> bool:
        """Whether training samples completions; raise if the settings ask for what cannot be done."""
        has_completions = "completion_ids" in (dataset.column_names or next(iter(dataset)))
        resamples = bool(args.resample_steps or args.resample_epochs)
        if resamples and not reward_funcs:
            raise ValueError("`resample_steps` and `resample_epochs` need `reward_funcs` to score new completions.")
        if args.use_vllm and not reward_funcs:
            raise ValueError("`use_vllm` needs `reward_funcs` to score completions: without, none are drawn.")
        if not has_completions and not reward_funcs:
            raise DataError(
                "The train data set has prompts but no completions. Add the columns `completions` and `scores` "
                "(`trl-ext sample` makes them), or pass `reward_funcs` to sample in training."
            )
        if args.keep_dataset_completions and not has_completions:
            raise DataError("`keep_dataset_completions` is set but the train data set has no completions.")
        samples = resamples or not has_completions
        if reward_funcs and not samples:
            logger.warning(
                "The train data set has completions and neither `resample_steps` nor `resample_epochs` is set: "
                "`reward_funcs` are used in evaluation only."
            )
        ranks = isinstance(dataset, Dataset) and not samples and args.rank_weight
        if ranks and all(len(ids) < 2 for ids in dataset["completion_ids"]):
            logger.warning("Every row has one completion: there is no pair to rank, and what is left is SFT.")
        if isinstance(dataset, IterableDataset) and samples and not args.resample_steps:
            raise ValueError("A streamed data set has no epochs to sample for; set `resample_steps`.")
        return samples

    @staticmethod
    def _check_evaluation(dataset: Any, reward_funcs: Any) -> None:
        """Now, and not when the first evaluation comes."""
        for name, part in (dataset if isinstance(dataset, dict) else {"eval": dataset}).items():
            columns = column_names(part) if part is not None else []
            if columns and not reward_funcs and "completion_ids" not in columns:
                raise DataError(
                    f"The {name} data set has prompts but no completions. Add the columns `completions` and `scores` "
                    "(`trl-ext sample` makes them), or pass `reward_funcs` to sample in evaluation."
                )

    def _load_reference(
        self, model: Any, ref_model: Any, args: RRHFConfig, quantization_config: Any
    ) -> Reference | None:
        if args.beta and self._samples:
            return Reference(model, ref_model, args, quantization_config)
        if ref_model is not None:
            logger.warning("`ref_model` is not used: RRHF needs none without a KL term (`beta`).")
        if args.beta:
            logger.warning("`beta` is ignored: RRHF has a KL term only for completions that are sampled in training.")
        return None

    # --------------------------------------------------------------------------------------------------- sampling

    def get_batch_samples(
        self, epoch_iterator: Iterator[dict[str, Any]], num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, Any]], int | None]:
        """The micro-batches of one optimizer step, with completions, and the prompts of all processes in them."""
        if self._samples:
            epoch = int(self.state.epoch or 0)
            batches = self._rounds.batches(epoch_iterator, num_batches, epoch, self.train_dataset)
        else:
            batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        if not batches:
            return batches, None
        prompts = sum(sum(1 for group in batch["completion_ids"] if group) for batch in batches)
        count = torch.tensor(prompts, device=self.accelerator.device)
        return batches, max(1, int(self.accelerator.reduce(count, reduction="sum")))

    def _sample_round(self, rows: list[dict[str, Any]], mode: str = "train") -> Round:
        """Sample and score completions for `rows` with the current model, and log what came out."""
        args = self.args
        with self._chance(mode), self.engine.drawing(self) as draw:
            completions = draw([row["prompt_ids"] for row in rows])
        sampled = score_round(
            rows,
            completions,
            self.rewards,
            args.reward_weights,
            max_length=args.max_length,
            tokenizer=self._tokenizer,
            penalty=self._kl_penalty if self.reference is not None and mode == "train" else None,
            keep_dataset_completions=args.keep_dataset_completions and mode == "train",
            trainer_state=self.state,
        )
        self._show_round(sampled, mode)
        return sampled

    def _kl_penalty(self, prompts: list[list[int]], completions: list[list[list[int]]]) -> list[list[float]]:
        """beta * (log pi(y | x) - log pi_0(y | x)) for each completion, section 4.1."""
        assert self.reference is not None
        ratios = self.reference.log_ratios(self, self.log_probs, prompts, completions)
        self._meters["train"].add_values("kl", torch.tensor([x for group in ratios for x in group]))
        return [[self.args.beta * x for x in group] for group in ratios]

    # ------------------------------------------------------------------------------------------------------- loss

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """
        Eq. (5): L = rank_weight * L_rank + sft_weight * L_ft, averaged over prompts.

        With `num_items_in_batch` (the prompts of all micro-batches and processes of a step) the sum over this batch is
        divided by that number, so that neither accumulation nor unequal batches change the gradient.
        """
        kept = [b for b, group in enumerate(inputs["completion_ids"]) if group]
        if not kept:
            return self._zero_loss(lambda prompts, some: self.log_probs(model, prompts, some).logps, inputs)
        prompts = [inputs["prompt_ids"][b] for b in kept]
        completions = [inputs["completion_ids"][b] for b in kept]
        tokens = self.log_probs(model, prompts, completions)
        device = tokens.logps.device
        scores_N = torch.tensor([s for b in kept for s in inputs["scores"][b]], device=device)
        group_N = torch.tensor(group_index(completions), device=device)
        sums_N, lengths_N = tokens.sums(), tokens.lengths()
        p_N = normalized_logps(sums_N, lengths_N, self.args.length_penalty)
        rank_B = ranking_loss(p_N, scores_N, group_N, len(kept), self.args.margin)
        best_B = best_completion(scores_N, group_N, len(kept))
        sft_B = sft_loss(sums_N, lengths_N, best_B, self.args.sft_reduction)
        loss_B = self.args.rank_weight * rank_B + self.args.sft_weight * sft_B
        self._measure(tokens, p_N, scores_N, group_N, best_B, rank_B, sft_B)
        if self.model.training:
            self._num_tokens += sum(map(len, prompts)) + sum(len(c) for group in completions for c in group)
        loss = self._mean(loss_B.sum(), len(loss_B), num_items_in_batch)
        return (loss, {"p": p_N, "scores": scores_N, "group": group_N}) if return_outputs else loss

    @torch.no_grad()
    def _measure(
        self,
        tokens: TokenLogps,
        p_N: torch.Tensor,
        scores_N: torch.Tensor,
        group_N: torch.Tensor,
        best_B: torch.Tensor,
        rank_B: torch.Tensor,
        sft_B: torch.Tensor,
    ) -> None:
        meters = self._meters["train" if self.model.training else "eval"]
        num_prompts = len(best_B)
        meters.add_values("loss/rank", rank_B)
        meters.add_values("loss/sft", sft_B)
        meters.add("rewards/accuracies", *pair_accuracy(p_N, scores_N, group_N))
        meters.add_values("kendall_tau", kendall_tau(p_N, scores_N, group_N, num_prompts))
        is_best_N = torch.zeros_like(p_N, dtype=torch.bool)
        is_best_N[best_B] = True
        others_B = p_N.new_zeros(num_prompts).index_add(0, group_N, p_N * ~is_best_N)
        others_B = others_B / (torch.bincount(group_N, minlength=num_prompts) - 1)  # NaN where K = 1
        meters.add_values("logps/chosen", p_N[best_B])
        meters.add_values("logps/rejected", others_B)
        meters.add_values("rewards/margins", p_N[best_B] - others_B)
        meters.add_values("logps/mean", p_N)
        scored = tokens.completion_index >= 0
        meters.add("entropy", tokens.entropy[scored].sum(), scored.sum())
        meters.add("mean_token_accuracy", tokens.is_top1[scored].sum(), scored.sum())

    # ------------------------------------------------------------------------------------------------- evaluation

    def _before_evaluation(self, dataset: AnyDataset) -> None:
        widths = (
            [len(scores) for scores in dataset["scores"]] if isinstance(dataset, Dataset) and _scored(dataset) else []
        )
        self._eval_width = max([self.args.num_generations, *widths])

    def prediction_step(
        self, model: torch.nn.Module, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: Any = None
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        if not any(inputs["completion_ids"]):
            if not self.rewards:
                raise DataError("The eval data set has prompts but no completions, and there are no `reward_funcs`.")
            rows = [{**row, "row_index": n} for n, row in enumerate(inputs["rows"])]
            rollouts = list(self._sample_round(rows, "eval").rollouts.values())
            self._eval_batches += 1
            inputs["completion_ids"] = [rollout.completion_ids for rollout in rollouts]
            inputs["scores"] = [rollout.scores for rollout in rollouts]
        with torch.no_grad(), self.compute_loss_context_manager():
            if not any(inputs["completion_ids"]):
                return self.compute_loss(model, inputs).detach(), None, None
            loss, outputs = self.compute_loss(model, inputs, return_outputs=True)
        if prediction_loss_only:
            return loss.detach(), None, None
        return loss.detach(), self._by_prompt(outputs, "p"), self._by_prompt(outputs, "scores")

    def _by_prompt(self, outputs: dict[str, torch.Tensor], name: str) -> torch.Tensor:
        """The values of the completions as (B, K), NaN where a prompt has fewer: what Trainer gathers goes by rows."""
        group_N = outputs["group"]
        counts = torch.bincount(group_N)
        table = outputs[name].new_full((len(counts), max(self._eval_width, int(counts.max()))), torch.nan)
        first_N = torch.cat([counts.new_zeros(1), counts.cumsum(0)[:-1]])[group_N]
        table[group_N, torch.arange(len(group_N), device=group_N.device) - first_N] = outputs[name].detach()
        return table
