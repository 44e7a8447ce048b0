# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Trainer of PSLE (PLE): iterations of generating with and without a principle, comparing rewards, and learning."""

import os
import textwrap
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from accelerate.utils import gather_object
from datasets import Dataset, IterableDataset
from transformers import (
    BitsAndBytesConfig,
    EvalPrediction,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainerCallback,
)
from transformers.utils import logging

from trl_ext.data.load import load_dataset
from trl_ext.data.schema import AnyDataset, check_dataset, first_row
from trl_ext.data.scored_rows import REWARD_FLAGS
from trl_ext.progress import library_progress, shown
from trl_ext.rewards.functions import RewardFunc
from trl_ext.training.checkpoints import last_checkpoint
from trl_ext.training.online_trainer import OnlineTrainer
from trl_ext.training.predictions import completion_table
from trl_ext.training.rollouts import Round
from trl_ext.training.rounds import resample_stream
from trl_ext.training.summary import Run
from trl_ext.training.trainer import EvalDataset
from trl_ext.upstream import global_then_local_main_first

from .config import PSLEConfig
from .data import (
    GUIDED,
    PLAIN,
    DataCollatorForPrompts,
    check_context_length,
    load_principles,
    pairs,
    prepare_prompts,
    prepare_sft_dataset,
    view_marks,
)
from .iterations import Iterations, Sample, both_views, check_max_steps, principle_numbers
from .losses import is_ranked, prompt_means, ranking_loss, sft_weights, weighted_sft_loss
from .warm_up import WARM_UP, WarmUpTrainer


if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel

logger = logging.get_logger(__name__)


class PSLETrainer(OnlineTrainer):
    """
    Trainer for Progressively Selective Label Enhancement (PSLE), later called Progressively Label Enhancement (PLE).

    The method is described in [Progressively Label Enhancement for Large Language Model
    Alignment](https://huggingface.co/papers/2408.02599). `PLETrainer` is the same class.

    Args:
        model (`str`, [`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            Model to be trained: a Hub id, a directory, or a model.
        reward_funcs (`str`, `Callable`, [`~transformers.PreTrainedModel`] or a `list` of these):
            Reward functions as in TRL's GRPO. They always get the plain prompt.
        args ([`PSLEConfig`], *optional*):
            Configuration, with the principles unless each row has its own.
        train_dataset ([`~datasets.Dataset`] or [`~datasets.IterableDataset`]):
            Rows with `prompt`, plain text or messages, and possibly `principle` or `principles`; other columns are
            passed to the reward functions. A stream needs `max_steps`; without `resample_steps` completions are
            generated for each step.
        eval_dataset ([`~datasets.Dataset`], [`~datasets.IterableDataset`] or a `dict` of them, *optional*):
            The same. `evaluate()` reports the rewards of the policy's completions with and without a principle.
        processing_class ([`~transformers.PreTrainedTokenizerBase`], *optional*):
            Tokenizer; by default the model's.
        reward_processing_classes (`list`, *optional*):
            Tokenizers of the reward models.
        callbacks (`list` of [`~transformers.TrainerCallback`], *optional*):
            Callbacks to add.
        optimizers (`tuple`, *optional*, defaults to `(None, None)`):
            Optimizer and scheduler to use.
        quantization_config ([`~transformers.BitsAndBytesConfig`], *optional*):
            Quantisation for a `model` given by name (QLoRA, with `peft_config`).
        peft_config ([`~peft.PeftConfig`], *optional*):
            Adapter to train.
        sft_dataset ([`~datasets.Dataset`], *optional*):
            Completions to imitate, instead of the config's `sft_dataset_name`, in the forms that
            [`~trl_ext.methods.psle.data.prepare_sft_dataset`] takes.
        ref_model (`str`, [`~transformers.PreTrainedModel`] or [`~peft.PeftModel`], *optional*):
            Reference of the KL term (`beta > 0`): a model, or a directory or Hub id, which is loaded as `model` is
            (`trust_remote_code`, `model_init_kwargs`, `quantization_config`). By default `model` as it is when
            the iterations begin (after a warm-up): a frozen copy, or the weights of its adapter as they were.
        compute_metrics (`Callable`, *optional*):
            Called at evaluation with predictions l (mean log-probability per token given the plain prompt) and
            label_ids the rewards, both of shape (rows, 2K): K = `num_generations` plain completions, then K guided
            ones; NaN where a completion has no reward. With `sft_target="best"` (rows, K).

    Raises:
        `ValueError`, `TypeError`: Arguments contradict each other.
        [`~trl_ext.data.schema.DataError`]: A row, column or principle cannot be used.

    Examples:
    ```python
    >>> from datasets import load_dataset
    >>> from trl_ext import PSLEConfig, PSLETrainer

    >>> trainer = PSLETrainer(
    ...     model="Qwen/Qwen2.5-0.5B-Instruct",
    ...     reward_funcs="trl-lib/Qwen2-0.5B-Reward",
    ...     args=PSLEConfig(output_dir="psle", principles=["Be helpful, honest and harmless."]),
    ...     train_dataset=load_dataset("trl-lib/ultrafeedback-prompt", split="train"),
    ... )
    >>> trainer.train()
    ```
    """

    args: PSLEConfig
    _config_class: ClassVar[type[PSLEConfig]] = PSLEConfig
    _tag_names: ClassVar = ["trl", "trl-ext", "psle"]
    _name = "PSLE"
    _paper: ClassVar = {
        "title": "Progressively Label Enhancement for Large Language Model Alignment",
        "id": "2408.02599",
        # docstyle-ignore
        "citation": textwrap.dedent("""\
            @inproceedings{liu2025progressively,
                title        = {{Progressively Label Enhancement for Large Language Model Alignment}},
                author       = {Biao Liu and Ning Xu and Xin Geng},
                year         = 2025,
                booktitle    = {International Conference on Machine Learning},
            }"""),
    }
    _row_columns: ClassVar = ("guided_ids",)
    _samples = True

    def __init__(
        self,
        model: "str | PreTrainedModel | PeftModel",
        reward_funcs: RewardFunc | list[RewardFunc] | None = None,
        args: PSLEConfig | None = None,
        train_dataset: AnyDataset | None = None,
        eval_dataset: EvalDataset | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        reward_processing_classes: PreTrainedTokenizerBase | list[PreTrainedTokenizerBase | None] | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[torch.optim.Optimizer | None, torch.optim.lr_scheduler.LambdaLR | None] = (None, None),
        quantization_config: BitsAndBytesConfig | None = None,
        peft_config: "PeftConfig | None" = None,
        sft_dataset: Dataset | None = None,
        ref_model: "str | PreTrainedModel | PeftModel | None" = None,
        compute_metrics: Callable[[EvalPrediction], dict] | None = None,
    ):
        args = self._config_for(model, args)
        # Data and rewards before the model: a mistake there should not cost the time of loading weights.
        self._check_arguments(args, reward_funcs, train_dataset, optimizers)
        train_dataset = self._setup(
            model, args, train_dataset, processing_class, reward_funcs, reward_processing_classes
        )
        self._principles = load_principles(args)
        if self._principles and args.sft_target == "best":
            logger.warning("The principles are not used: with `sft_target: best` all completions are plain ones.")
        train_dataset, eval_dataset = self._prepare_datasets(train_dataset, eval_dataset, args)
        check_max_steps(args, len(train_dataset) if isinstance(train_dataset, Dataset) else 0)
        self._sft_dataset = self._prepare_sft_dataset(sft_dataset, args)
        super().__init__(
            model,
            args,
            data_collator=DataCollatorForPrompts(),
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            compute_metrics=compute_metrics,
            callbacks=callbacks,
            optimizers=optimizers,
            ref_model=ref_model,
            quantization_config=quantization_config,
            peft_config=peft_config,
            epochs_per_round=args.epochs_per_iteration,
        )
        self.iterations = Iterations(args.threshold)

    # ------------------------------------------------------------------------------------------------ preparation

    @staticmethod
    def _check_arguments(args: PSLEConfig, reward_funcs: Any, dataset: Any, optimizers: Any) -> None:
        if not reward_funcs:
            raise ValueError(
                f"`reward_funcs` are required {REWARD_FLAGS}: PSLE learns from the rewards of the policy's "
                "completions."
            )
        if isinstance(dataset, IterableDataset) and args.max_steps <= 0:
            raise ValueError(
                "A streamed dataset has no length, so an iteration cannot be a pass over it: set `max_steps` (an "
                "iteration is then `max_steps` / `num_iterations` steps)."
            )
        resample_stream(args, dataset)
        if args.sft_epochs and any(part is not None for part in optimizers):
            raise ValueError(
                "`optimizers` cannot be used for both the warm-up and the iterations: leave out either them or "
                "`sft_epochs`."
            )

    def _tokenize(self, dataset: AnyDataset, args: PSLEConfig, name: str) -> tuple[AnyDataset, int]:
        return prepare_prompts(dataset, self._tokenizer, self._principles, args, name=name)

    def _check_context_lengths(
        self, train: AnyDataset, evals: Any, args: PSLEConfig, context: int
    ) -> tuple[AnyDataset, Any]:
        checked = super()._check_context_lengths(train, evals, args, context)
        if self._sft_dataset is not None:
            super()._check_context_length(self._sft_dataset, args, "SFT")
        return checked

    def _check_context_length(
        self, dataset: AnyDataset, args: PSLEConfig, name: str, *, samples: bool = True
    ) -> AnyDataset:
        context = self._generation_context(args)
        hint = "" if context == self._context else " Or raise `vllm_max_model_length`, which is the limit here."
        dataset = check_context_length(dataset, context, args.max_completion_length, hint, name=name)
        return super()._check_context_length(dataset, args, name, samples=samples)  # prompts without a principle

    def _prepare_sft_dataset(self, dataset: Dataset | None, args: PSLEConfig) -> Dataset | None:
        if not (args.sft_epochs or args.sft_mix):
            if dataset is not None or args.sft_dataset_name:
                logger.warning("The SFT dataset is not used: neither `sft_epochs` nor `sft_mix` is set.")
            return None
        if dataset is None:
            if not args.sft_dataset_name:
                raise ValueError("`sft_epochs` and `sft_mix` need completions to imitate: set `sft_dataset_name`.")
            splits = load_dataset(args.sft_dataset_name)
            dataset = splits["train"] if "train" in splits else next(iter(splits.values()))
        if isinstance(dataset, IterableDataset):
            raise TypeError(
                "`sft_dataset` must be a `Dataset`, got `IterableDataset`: a stream has no length, which the epochs "
                "of the warm-up and the random rows of `sft_mix` need."
            )
        check_dataset(dataset, "sft_dataset", streamed=False)
        with (
            shown(not args.disable_tqdm),
            library_progress("tokenizing the SFT dataset"),
            global_then_local_main_first(),
        ):
            rows, dropped = prepare_sft_dataset(dataset, self._tokenizer, args)
        self._report_dropped(dropped, args, "SFT")
        return rows

    def _has_guided(self) -> bool:
        """Whether half of the completions are guided by a principle."""
        return self.args.sft_target != "best" and any(first_row(self.train_dataset, "train")["guided_ids"])

    def _completions_per_row(self) -> int:
        return super()._completions_per_row() * (2 if self._has_guided() else 1)

    def _summary(self, run: Run) -> dict[str, str]:
        lines = super()._summary(run)
        if self._has_guided():
            lines["sampling"] += ", half of them guided by a principle"
        if self.args.num_iterations > 1:
            lines["training"] += f"; {self.args.num_iterations} iterations"
        return lines

    # --------------------------------------------------------------------------------------------------- sampling

    def _batches_of_step(
        self, epoch_iterator: Iterator[dict[str, Any]], num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, Any]], int | None]:
        self._begin_iteration(int(self.state.epoch or 0))
        batches, prompts = super()._batches_of_step(epoch_iterator, num_batches, device)
        return [{**batch, "mixed": self._mixed(i, batch)} for i, batch in enumerate(batches)], prompts

    def _kept(self, batch: dict[str, Any]) -> list[int]:
        if self.args.sft_target == "best":
            return super()._kept(batch)
        return [b for b, marks in enumerate(batch["marks"]) if len(set(marks)) == 2]  # those with a pair

    def _begin_iteration(self, epoch: int) -> None:
        """Enter the iteration that the next step belongs to."""
        args = self.args
        if args.resample_steps and args.max_steps > 0:  # iterations are independent of epochs
            number = self.state.global_step * args.num_iterations // args.max_steps
        else:
            number = epoch // args.epochs_per_iteration
        if number > self.iterations.number:
            self._warn(due=args.resample_steps > 0)
            self.iterations.advance(number, args.threshold_decay)

    def _warn(self, due: bool) -> None:
        """Log the warnings about the current iteration, if they are due."""
        # Every process collects them, so that all checkpoints record the same warnings as logged.
        for text in self.iterations.warnings(self.args.rank_weight > 0) if due else ():
            if self.accelerator.is_main_process:
                logger.warning(text)

    def _mixed(self, i: int, batch: dict[str, Any]) -> list[dict[str, Any]]:
        """
        As many random rows of the SFT dataset as the loss counts prompts.

        The seed depends on the step alone, so that a resumed run takes the same rows.
        """
        if not self.args.sft_mix or self._sft_dataset is None:
            return []
        generator = torch.Generator().manual_seed(
            (self.args.seed * 1_000_003 + self.state.global_step) * 4_099 + i * 257 + self.accelerator.process_index
        )
        chosen = torch.randint(len(self._sft_dataset), (len(self._kept(batch)),), generator=generator)
        return [self._sft_dataset[n] for n in chosen.tolist()]

    def _sample_round(self, rows: list[dict[str, Any]], mode: str = "train") -> Round:
        """Generate completions for `rows` with and without a principle, score them, and log their metrics."""
        args = self.args
        start = time.perf_counter()
        with self._seeded(mode), self.engine.generating(self, mode) as generate:
            completions = both_views(rows, self.iterations.number, generate)
        generated = time.perf_counter()
        k = args.completions_per_prompt(mode)
        guided = bool(rows) and len(completions[0]) > k
        marks = view_marks(k, guided)
        # `prompt` is the plain one: reward functions never see a principle, unless it is a column of the rows.
        plain_rows = [{name: value for name, value in row.items() if name != "guided_ids"} for row in rows]
        sampled = self._score(plain_rows, completions, mode, marks=marks)
        if any(len(row["guided_ids"]) > 1 for row in rows):
            sampled.extra["principle"] = principle_numbers(rows, self.iterations.number, marks)
        meters = self._meters[mode]
        meters.add("seconds/generation", generated - start, len(rows))
        meters.add("seconds/reward", time.perf_counter() - generated, len(rows))
        self._measure_round(sampled, marks * len(rows), Sample.of(list(sampled.rollouts.values()), completions), mode)
        return sampled

    def _measure_round(self, sampled: Round, views: list[int], sample: Sample, mode: str) -> None:
        args, meters = self.args, self._meters[mode]
        if mode == "train":
            samples = gather_object([sample]) if self.accelerator.num_processes > 1 else [sample]
            self.iterations.observe(samples, args.reward_scaling, args.two_sided)
            self._warn(due=not args.resample_steps)
        scores, view = torch.tensor(sampled.table["score"]), torch.tensor(views)
        meters.add_values("rewards/plain", scores[view == PLAIN])
        meters.add_values("rewards/guided", scores[view == GUIDED])
        gaps = torch.tensor(sample.gaps)
        meters.add_values("rewards/gap", gaps)
        meters.add_values("principle_win_rate", (gaps > 0).float() + 0.5 * (gaps == 0))
        meters.add_values("distinct_2", torch.tensor([sample.distinct_2]))
        meters.add("completions/empty_ratio", sample.empty, sample.completions)
        sampled.table["guided"] = [float(v) for v in views]  # TRL prints such columns as numbers
        self._log_round(sampled, mode)

    # ------------------------------------------------------------------------------------------------------- loss

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """
        Ranking loss of the pairs above the threshold and SFT loss of the others, averaged over pairs, then prompts.

        The loss of a completion is computed given the plain prompt, whether or not a principle guided its generation.
        With `num_items_in_batch`, the number of prompts in all micro-batches and processes of a step, the sum over
        this batch is divided by that number, so the gradient depends neither on accumulation nor on unequal batches.
        """
        kept, mixed = self._kept(inputs), inputs.get("mixed") or []
        if not kept and not mixed:
            loss = self._zero_loss(partial(self.log_probs, model), inputs)
            return (loss, {"logps": loss.new_empty(0)}) if return_outputs else loss
        prompts = [inputs["prompt_ids"][b] for b in kept] + [row["prompt_ids"] for row in mixed]
        completions = [inputs["completion_ids"][b] for b in kept]
        own = sum(map(len, completions))
        completions += [row["completion_ids"] for row in mixed]
        tokens = self.log_probs(model, prompts, completions, aux_loss=self.aux_loss_enabled)
        l_N = tokens.sums() / tokens.lengths().clamp(min=1)
        total = self._prompt_losses(l_N[:own], inputs, kept).sum() if own else l_N.new_zeros(())
        if mixed:
            total = total - self.args.sft_mix * l_N[own:].sum()
            self._meters[self._mode].add_values("loss/sft_mix", -l_N[own:].detach())
        self._measure_tokens(tokens)
        self._add_tokens(prompts, completions)
        loss = self._mean(total, len(kept), num_items_in_batch)
        loss = self._with_aux_loss(loss, tokens, num_items_in_batch)
        loss = self._through_parts(loss, tokens)
        return (loss, {"logps": l_N}) if return_outputs else loss

    def _prompt_losses(self, l_N: torch.Tensor, inputs: dict[str, Any], kept: list[int]) -> torch.Tensor:
        """The loss of each kept prompt -> (B,)."""
        args, device = self.args, l_N.device
        scores = [inputs["scores"][b] for b in kept]
        if args.sft_target == "best":
            starts = [sum(map(len, scores[:b])) for b in range(len(scores))]
            best = [start + max(range(len(s)), key=s.__getitem__) for start, s in zip(starts, scores, strict=True)]
            sft_B = -l_N[best]
            self._meters[self._mode].add_values("loss/sft", sft_B)
            return args.sft_weight * sft_B
        prompt_M, plain_M, guided_M = torch.tensor(pairs([inputs["marks"][b] for b in kept]), device=device).T
        rewards_N = torch.tensor([s for group in scores for s in group], device=device) / self.iterations.scale
        rewards_M = rewards_N[plain_M], rewards_N[guided_M]
        l_M = l_N[plain_M], l_N[guided_M]
        ranked_M = is_ranked(*rewards_M, self.iterations.threshold, args.two_sided)
        if not args.rank_weight:
            ranked_M = torch.zeros_like(ranked_M)
        weights_M = sft_weights(*rewards_M, args.reward_temperature)
        if args.sft_target == "guided":
            weights_M = torch.zeros_like(weights_M)
        rank_M = ranking_loss(*l_M, *rewards_M, args.margin)
        sft_M = weighted_sft_loss(*l_M, weights_M)
        self._measure_pairs(l_M, ranked_M, rank_M, sft_M)
        loss_M = torch.where(ranked_M, args.rank_weight * rank_M, args.sft_weight * sft_M)
        return prompt_means(loss_M, prompt_M, len(kept))

    @torch.no_grad()
    def _measure_pairs(
        self, l_M: tuple[torch.Tensor, torch.Tensor], ranked_M: torch.Tensor, rank_M: torch.Tensor, sft_M: torch.Tensor
    ) -> None:
        meters = self._meters[self._mode]
        meters.add_values("ranked_share", ranked_M.float())
        meters.add_values("loss/rank", rank_M[ranked_M])
        meters.add_values("loss/sft", sft_M[~ranked_M])
        meters.add_values("logps/plain", l_M[0])
        meters.add_values("logps/guided", l_M[1])

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        start = time.perf_counter()
        loss = super().training_step(*args, **kwargs)
        self._meters["train"].add("seconds/update", time.perf_counter() - start, len(args[1]["prompt_ids"]))
        return loss

    # ------------------------------------------------------------------------------------------------- evaluation

    def _before_evaluation(self, dataset: AnyDataset) -> None:
        args, main = self.args, self.accelerator.is_main_process
        if main and args.reward_scaling != "none" and not self.iterations.rewards.count:
            logger.warning(
                "Evaluation before training: no rewards have been seen, so loss, `ranked_share` and the threshold are "
                f"in units of the reward itself; later in its deviations (`reward_scaling: {args.reward_scaling}`)."
            )

    def prediction_step(
        self, model: torch.nn.Module, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: Any = None
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        rollouts = self._sample_evaluation(inputs["rows"])
        completions = {
            "completion_ids": [rollout.completion_ids for rollout in rollouts],
            "scores": [rollout.scores for rollout in rollouts],
            "marks": [rollout.marks for rollout in rollouts],
        }
        inputs = inputs | completions
        with torch.no_grad(), self.compute_loss_context_manager():
            loss, outputs = self.compute_loss(model, inputs, return_outputs=True)
        if prediction_loss_only:
            return loss.detach(), None, None
        return loss.detach(), *self._tables(inputs, outputs["logps"])

    def _tables(self, inputs: dict[str, Any], logps_N: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What `compute_metrics` gets: l and the reward of each completion, plain ones first, then guided ones."""
        size, kept = self.args.completions_per_prompt("eval"), set(self._kept(inputs))
        columns: list[list[int]] = [[] for _ in inputs["marks"]]
        for b in kept:
            free = {PLAIN: count(0), GUIDED: count(size)}
            columns[b] = [next(free[mark]) for mark in inputs["marks"][b]]
        scores = [score for b in sorted(kept) for score in inputs["scores"][b]]
        rewards_N = torch.tensor(scores, dtype=torch.float32, device=logps_N.device)
        width = size if self.args.sft_target == "best" else 2 * size
        return completion_table(logps_N, columns, width), completion_table(rewards_N, columns, width)

    def _totals(self) -> dict[str, float]:
        return {
            **super()._totals(),
            "iteration": float(self.iterations.number + 1),
            "threshold": self.iterations.threshold,
            "reward_scale": self.iterations.scale,
        }

    # ------------------------------------------------------------------------------------------------ checkpoints

    def train(self, resume_from_checkpoint: str | os.PathLike | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """
        Run the warm-up, if `sft_epochs` is set, and then the iterations.

        Args:
            resume_from_checkpoint (`str` or `bool`, *optional*): A checkpoint of the warm-up or of the iterations to
                resume from. `True`: the latest one.
            args, kwargs: Passed to [`~transformers.Trainer.train`].
        """
        path = resume_from_checkpoint or None
        if path is True:
            folders = (self.args.output_dir, Path(self.args.output_dir) / WARM_UP)
            path = next(filter(None, map(last_checkpoint, folders)), True)  # transformers raises if there is none
        in_warm_up = isinstance(path, str | os.PathLike) and Path(path).resolve().parent.name == WARM_UP
        if self.args.sft_epochs and (in_warm_up or not path):
            assert self._sft_dataset is not None
            WarmUpTrainer(self, self._sft_dataset).train(path if in_warm_up else None)
            path = None
        if self.args.sft_epochs and self.reference is not None and path is not True:
            # The KL term is to the model that the iterations start from.
            folder = Path(path).parent if isinstance(path, str | os.PathLike) else Path(self.args.output_dir)
            self.reference.set_to_policy(self, folder / WARM_UP / "reference.safetensors", resumed=path is not None)
        output = super().train(path, *args, **kwargs)
        self._warn(due=self.args.resample_steps > 0)
        return output

    def _restore_state(self, folder: Path | None) -> None:
        super()._restore_state(folder)
        self.iterations = Iterations(self.args.threshold)
        if folder is None:
            return
        if self._state_file(folder).is_file():
            self.iterations = Iterations.load(self._state_file(folder))
        else:
            logger.warning(
                "%s does not exist: the iterations begin again, with the first threshold.", self._state_file(folder)
            )

    def _state_file(self, folder: Path) -> Path:
        return folder / f"iterations_{self.accelerator.process_index}.json"

    def _save_state(self, folder: Path) -> None:
        super()._save_state(folder)
        self.iterations.save(self._state_file(folder))


PLETrainer = PSLETrainer
