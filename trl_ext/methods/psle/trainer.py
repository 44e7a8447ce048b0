# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""The trainer of PSLE (PLE): prompts and principles in; iterations of answering both ways, comparing and learning."""

import copy
import os
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from accelerate.utils import gather_object
from datasets import Dataset, IterableDataset
from transformers import (
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainerCallback,
    set_seed,
)
from transformers.utils import logging

from trl_ext.data.load import load_dataset
from trl_ext.data.schema import AnyDataset, column_names
from trl_ext.logprobs.logprobs import LogProbs, TokenLogps
from trl_ext.models.load import context_length
from trl_ext.rewards.functions import RewardFunc
from trl_ext.training.checkpoints import last_checkpoint
from trl_ext.training.engine import Engine
from trl_ext.training.model_loading import load_policy
from trl_ext.training.reference import Reference
from trl_ext.training.rollouts import Round, score_round
from trl_ext.training.rounds import Rounds
from trl_ext.training.trainer import EvalDataset, ExtTrainer
from trl_ext.upstream import get_config_model_id, global_then_local_main_first

from .config import PSLEConfig
from .data import (
    DataCollatorForPrompts,
    check_context_length,
    load_principles,
    pairs,
    prepare_answers,
    prepare_prompts,
    view_marks,
)
from .iterations import Iterations, Sample, both_views
from .losses import is_ranked, prompt_means, ranking_loss, sft_weights, weighted_sft_loss


if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel

logger = logging.get_logger(__name__)

WARM_UP = "warm_up"  # its folder in `output_dir`, and the prefix of its metrics


class PSLETrainer(ExtTrainer):
    """
    Trainer for Progressively Selective Label Enhancement (PSLE), later called Progressively Label Enhancement (PLE).

    The method is described in [Progressively Label Enhancement for Large Language Model
    Alignment](https://huggingface.co/papers/2408.02599). `PLETrainer` is the same class.

    Args:
        model (`str`, [`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            Model to be trained: a Hub id, a directory, or a model.
        reward_funcs (`str`, `Callable`, [`~transformers.PreTrainedModel`] or a `list` of these):
            Reward functions as in TRL's GRPO. They are always given the plain prompt.
        args ([`PSLEConfig`], *optional*):
            Configuration; it has the principles, unless the rows have.
        train_dataset ([`~datasets.Dataset`] or [`~datasets.IterableDataset`]):
            Rows with `prompt`, plain text or messages, and possibly `principle`; other columns are passed to the
            reward functions. A stream needs `resample_steps` and `max_steps`.
        eval_dataset ([`~datasets.Dataset`], [`~datasets.IterableDataset`] or a `dict` of them, *optional*):
            The same. `evaluate()` reports the rewards of what the policy writes with and without a principle.
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
            Answers to imitate, in place of `sft_dataset_name` of the config.
        ref_model (`str`, [`~transformers.PreTrainedModel`] or [`~peft.PeftModel`], *optional*):
            Reference of the KL term (`beta > 0`): a model, or a directory or Hub id, which is loaded as `model` is
            (`trust_remote_code`, `model_init_kwargs`, `quantization_config`). By default the adapter switched off, or
            a frozen copy of `model`.

    Raises:
        `ValueError`, `TypeError`: Arguments that contradict each other; the message says which.
        [`~trl_ext.data.schema.DataError`]: A row, column or principle that cannot be used.

    Examples:
    ```python
    >>> from datasets import load_dataset
    >>> from trl_ext import PSLEConfig, PSLETrainer

    >>> trainer = PSLETrainer(
    ...     model="Qwen/Qwen2.5-0.5B-Instruct",
    ...     reward_funcs="my_organisation/my-reward-model",
    ...     args=PSLEConfig(output_dir="psle", principles=["Be helpful, honest and harmless."]),
    ...     train_dataset=load_dataset("json", data_files="prompts.jsonl", split="train"),
    ... )
    >>> trainer.train()
    ```
    """

    engine: Engine
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
    args: PSLEConfig
    train_dataset: AnyDataset
    _rounds: Rounds
    _row_columns: ClassVar = ("guided_ids",)
    _samples = True
    # `compute_loss` divides by the prompts of all micro-batches and processes of a step.
    loss_is_scaled_for_ga = True

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
    ):
        name = model if isinstance(model, str) else get_config_model_id(model.config)
        if args is None:
            args = self._config_class(f"{name.rstrip('/').split('/')[-1]}-PSLE")
        self._check_config(args)
        self._check_arguments(args, reward_funcs, train_dataset, optimizers)
        set_seed(args.seed)  # an adapter's initial weights are random
        self._tokenizer = self._load_tokenizer(name, model, args, processing_class)

        # Data and rewards before the model: a mistake there should not cost the time of loading weights.
        self.rewards = self._load_rewards(reward_funcs, reward_processing_classes, args)
        self._principles = load_principles(args)
        self._raw_columns = set(column_names(train_dataset))
        train_dataset = self._prepare_dataset(train_dataset, args, "train")
        eval_dataset = self._prepare_eval_dataset(eval_dataset, args)
        self._sft_dataset = self._prepare_sft_dataset(sft_dataset, args)

        model = load_policy(model, args, quantization_config, peft_config)
        model.config.get_text_config().pad_token_id = self._tokenizer.pad_token_id
        model.generation_config.pad_token_id = self._tokenizer.pad_token_id
        train_dataset, eval_dataset = self._check_context(train_dataset, eval_dataset, args, context_length(model))
        self.reference = Reference(model, ref_model, args, quantization_config) if args.beta else None
        if ref_model is not None and not args.beta:
            logger.warning("`ref_model` is not used: PSLE needs none without a KL term (`beta`).")
        self.log_probs = LogProbs(
            model,
            self._tokenizer.pad_token_id,
            shared_prefix=args.shared_prefix,
            pad_to_multiple_of=args.pad_to_multiple_of,
        )

        super().__init__(
            model=model,
            args=args,
            data_collator=DataCollatorForPrompts(),
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=self._tokenizer,
            callbacks=callbacks,
            optimizers=optimizers,
        )
        if self.reference is not None:
            self.reference.place(self)
        self.engine = Engine(self.model, self._tokenizer, args, self.accelerator)
        self.iterations = Iterations(args.threshold)
        self._rounds = Rounds(
            lambda rows: self._sample_round(rows).rollouts,
            self.accelerator,
            every_steps=args.resample_steps,
            every_epochs=args.epochs_per_iteration,
        )
        self._warming_up = False
        self._begin_metrics()

    # ------------------------------------------------------------------------------------------------ preparation

    @classmethod
    def _check_arguments(cls, args: PSLEConfig, reward_funcs: Any, dataset: Any, optimizers: Any) -> None:
        cls._check_train_dataset(dataset, args)
        if not reward_funcs:
            raise ValueError("`reward_funcs` are required: PSLE learns from the rewards of its own answers.")
        if isinstance(dataset, IterableDataset) and (not args.resample_steps or args.max_steps <= 0):
            raise ValueError(
                "A streamed data set has no length to sample an iteration for: set `resample_steps` and "
                "`max_steps` (an iteration is then `max_steps` / `num_iterations` steps)."
            )
        if args.sft_epochs and any(part is not None for part in optimizers):
            raise ValueError("`optimizers` cannot serve warm-up and iterations both: leave them or `sft_epochs` out.")

    def _tokenize(self, dataset: AnyDataset, args: PSLEConfig, name: str) -> tuple[AnyDataset, int]:
        return prepare_prompts(dataset, self._tokenizer, self._principles, args, name=name)

    def _check_context(self, train: AnyDataset, evals: Any, args: PSLEConfig, context: int) -> tuple[AnyDataset, Any]:
        checked = super()._check_context(train, evals, args, context)
        if self._sft_dataset is not None:
            super()._check_context_length(self._sft_dataset, args, "SFT")
        return checked

    def _check_context_length(
        self, dataset: AnyDataset, args: PSLEConfig, name: str, *, samples: bool = True
    ) -> AnyDataset:
        context = self._context_of_draws(args)
        hint = "" if context == self._context else " Or raise `vllm_max_model_length`, which is what limits it."
        dataset = check_context_length(dataset, context, args.max_completion_length, hint)
        return super()._check_context_length(dataset, args, name, samples=samples)  # prompts without a principle

    def _prepare_sft_dataset(self, dataset: Dataset | None, args: PSLEConfig) -> Dataset | None:
        if not (args.sft_epochs or args.sft_mix):
            if dataset is not None or args.sft_dataset_name:
                logger.warning("The SFT data set is not used: neither `sft_epochs` nor `sft_mix` is set.")
            return None
        if dataset is None:
            if not args.sft_dataset_name:
                raise ValueError("`sft_epochs` and `sft_mix` need answers to imitate: set `sft_dataset_name`.")
            splits = load_dataset(args.sft_dataset_name)
            dataset = splits["train"] if "train" in splits else next(iter(splits.values()))
        with global_then_local_main_first():
            return prepare_answers(dataset, self._tokenizer, args)[0]

    # --------------------------------------------------------------------------------------------------- sampling

    def get_batch_samples(
        self, epoch_iterator: Iterator[dict[str, Any]], num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, Any]], int | None]:
        """The micro-batches of one optimizer step, with answers, and the prompts of all processes in them."""
        if self._warming_up:
            batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        else:
            epoch = int(self.state.epoch or 0)
            self._begin(epoch)
            batches = self._rounds.batches(epoch_iterator, num_batches, epoch, self.train_dataset)
            batches = [{**batch, "mixed": self._mixed(i, batch)} for i, batch in enumerate(batches)]
        if not batches:
            return batches, None
        count = torch.tensor(sum(len(self._kept(batch)) for batch in batches), device=self.accelerator.device)
        return batches, max(1, int(self.accelerator.reduce(count, reduction="sum")))

    def _begin(self, epoch: int) -> None:
        """Enter the iteration that the next step belongs to."""
        args = self.args
        if args.resample_steps and args.max_steps > 0:  # nothing is tied to passes over the data
            number = self.state.global_step * args.num_iterations // args.max_steps
        else:
            number = epoch // args.epochs_per_iteration
        if number > self.iterations.number:
            self._report(self.args.resample_steps > 0)
            self.iterations.advance(number, self.args.threshold_decay)

    def _report(self, due: bool) -> None:
        # Every process asks, so that what was said is the same in all of their checkpoints.
        for text in self.iterations.warnings(self.args.rank_weight > 0) if due else ():
            if self.accelerator.is_main_process:
                logger.warning(text)

    def _mixed(self, i: int, batch: dict[str, Any]) -> list[dict[str, Any]]:
        """As many rows of the SFT set as the loss counts prompts; chance depends on the step alone, so it resumes."""
        if not self.args.sft_mix or self._sft_dataset is None:
            return []
        generator = torch.Generator().manual_seed(
            (self.args.seed * 1_000_003 + self.state.global_step) * 4_099 + i * 257 + self.accelerator.process_index
        )
        chosen = torch.randint(len(self._sft_dataset), (len(self._kept(batch)),), generator=generator)
        return [self._sft_dataset[n] for n in chosen.tolist()]

    def _sample_round(self, rows: list[dict[str, Any]], mode: str = "train") -> Round:
        """Answer `rows` both ways with the current model, score the answers, and log what came out."""
        args = self.args
        start = time.perf_counter()
        with self._chance(mode), self.engine.drawing(self) as draw:
            answers = both_views(rows, self.iterations.number, draw)
        drawn = time.perf_counter()
        guided = bool(rows) and len(answers[0]) > args.num_generations
        marks = view_marks(args.num_generations, guided)
        sampled = score_round(
            # `prompt` is the plain one; reward functions never see a principle, unless it is a column of the rows.
            [{name: value for name, value in row.items() if name != "guided_ids"} for row in rows],
            answers,
            self.rewards,
            args.reward_weights,
            max_length=args.max_length,
            tokenizer=self._tokenizer,
            penalty=self._kl_penalty if self.reference is not None and mode == "train" else None,
            trainer_state=self.state,
            marks=marks,
        )
        meters = self._meters[mode]
        meters.add("seconds/generation", drawn - start, len(rows))
        meters.add("seconds/reward", time.perf_counter() - drawn, len(rows))
        self._measure_round(sampled, marks * len(rows), Sample.of(list(sampled.rollouts.values()), answers), mode)
        return sampled

    def _measure_round(self, sampled: Round, views: list[int], sample: Sample, mode: str) -> None:
        args, meters = self.args, self._meters[mode]
        if mode == "train":
            samples = gather_object([sample]) if self.accelerator.num_processes > 1 else [sample]
            self.iterations.observe(samples, args.reward_scaling, args.two_sided)
            self._report(not args.resample_steps)
        scores, view = torch.tensor(sampled.table["score"]), torch.tensor(views)
        meters.add_values("rewards/plain", scores[view == 0])
        meters.add_values("rewards/guided", scores[view == 1])
        gaps = torch.tensor(sample.gaps)
        meters.add_values("rewards/gap", gaps)
        meters.add_values("principle_win_rate", (gaps > 0).float() + 0.5 * (gaps == 0))
        meters.add_values("distinct_2", torch.tensor([sample.distinct_2]))
        meters.add("completions/empty_ratio", sample.empty, sample.answers)
        sampled.table["guided"] = [float(v) for v in views]  # TRL prints such columns as numbers
        self._show_round(sampled, mode)

    def _kl_penalty(self, prompts: list[list[int]], completions: list[list[list[int]]]) -> list[list[float]]:
        """beta * (log pi(y | x) - log pi_0(y | x)) for each answer, given the plain prompt."""
        assert self.reference is not None
        ratios = self.reference.log_ratios(self, self.log_probs, prompts, completions)
        # Only what the policy drew from the plain prompt estimates its distance from the reference.
        plain = [x for group in ratios for x in group[: self.args.num_generations]]
        self._meters["train"].add_values("kl", torch.tensor(plain))
        return [[self.args.beta * x for x in group] for group in ratios]

    # ------------------------------------------------------------------------------------------------------- loss

    def _kept(self, batch: dict[str, Any]) -> list[int]:
        """The prompts of a batch that there is something to learn from: those with a pair, or with any answer."""
        if self.args.sft_target == "best" or "marks" not in batch:
            return [b for b, group in enumerate(batch["completion_ids"]) if group]
        return [b for b, marks in enumerate(batch["marks"]) if len(set(marks)) == 2]

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """
        Ranking loss for the pairs above the threshold, SFT loss for the others; the mean over pairs, then prompts.

        Answers are trained on the plain prompt, whichever prompt drew them. With `num_items_in_batch` (the prompts of
        all micro-batches and processes of a step) the sum over this batch is divided by that number, so that neither
        accumulation nor unequal batches change the gradient.
        """
        kept, mixed = self._kept(inputs), inputs.get("mixed") or []
        if not kept and not mixed:
            return self._zero_loss(lambda prompts, some: self.log_probs(model, prompts, some).logps, inputs)
        prompts = [inputs["prompt_ids"][b] for b in kept] + [row["prompt_ids"] for row in mixed]
        completions = [inputs["completion_ids"][b] for b in kept]
        answers = sum(map(len, completions))
        completions += [row["completion_ids"] for row in mixed]
        tokens = self.log_probs(model, prompts, completions)
        l_N = tokens.sums() / tokens.lengths().clamp(min=1)
        if not answers:
            total = l_N.new_zeros(())
        elif "marks" in inputs:
            total = self._prompt_losses(l_N[:answers], inputs, kept).sum()
        else:  # warm-up: rows to imitate, one answer each
            total = -l_N[:answers].sum()
        if mixed:
            total = total - self.args.sft_mix * l_N[answers:].sum()
        self._measure(tokens, l_N[answers:] if mixed else None)
        if self.model.training:
            self._num_tokens += sum(map(len, prompts)) + sum(len(c) for group in completions for c in group)
        loss = self._mean(total, len(kept), num_items_in_batch)
        return (loss, {"logps": l_N}) if return_outputs else loss

    def _prompt_losses(self, l_N: torch.Tensor, inputs: dict[str, Any], kept: list[int]) -> torch.Tensor:
        """The loss of each kept prompt -> (B,)."""
        args, device = self.args, l_N.device
        scores = [inputs["scores"][b] for b in kept]
        if args.sft_target == "best":
            starts = [sum(map(len, scores[:b])) for b in range(len(scores))]
            best = [start + max(range(len(s)), key=s.__getitem__) for start, s in zip(starts, scores, strict=True)]
            sft_B = -l_N[best]
            self._meters[self._mode()].add_values("loss/sft", sft_B)
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

    def _mode(self) -> str:
        return "train" if self.model.training else "eval"

    @torch.no_grad()
    def _measure_pairs(
        self, l_M: tuple[torch.Tensor, torch.Tensor], ranked_M: torch.Tensor, rank_M: torch.Tensor, sft_M: torch.Tensor
    ) -> None:
        meters = self._meters[self._mode()]
        meters.add_values("ranked_share", ranked_M.float())
        meters.add_values("loss/rank", rank_M[ranked_M])
        meters.add_values("loss/sft", sft_M[~ranked_M])
        meters.add_values("logps/plain", l_M[0])
        meters.add_values("logps/guided", l_M[1])

    @torch.no_grad()
    def _measure(self, tokens: TokenLogps, mixed_N: torch.Tensor | None) -> None:
        meters = self._meters[self._mode()]
        if mixed_N is not None:
            meters.add_values("loss/sft_mix", -mixed_N)
        scored = tokens.completion_index >= 0
        meters.add("entropy", tokens.entropy[scored].sum(), scored.sum())
        meters.add("mean_token_accuracy", tokens.is_top1[scored].sum(), scored.sum())

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        start = time.perf_counter()
        loss = super().training_step(*args, **kwargs)
        self._meters["train"].add("seconds/update", time.perf_counter() - start, len(args[1]["prompt_ids"]))
        return loss

    # ------------------------------------------------------------------------------------------------- evaluation

    def prediction_step(
        self, model: torch.nn.Module, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: Any = None
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        rows = [{**row, "row_index": n} for n, row in enumerate(inputs["rows"])]
        rollouts = list(self._sample_round(rows, "eval").rollouts.values())
        self._eval_batches += 1
        answers = {
            "completion_ids": [rollout.completion_ids for rollout in rollouts],
            "scores": [rollout.scores for rollout in rollouts],
            "marks": [rollout.marks for rollout in rollouts],
        }
        with torch.no_grad(), self.compute_loss_context_manager():
            return self.compute_loss(model, inputs | answers).detach(), None, None

    def _totals(self) -> dict[str, float]:
        if self._warming_up:
            return {name: value for name, value in super()._totals().items() if name != "dropped_rows"}
        return {
            **super()._totals(),
            "iteration": float(self.iterations.number + 1),
            "threshold": self.iterations.threshold,
            "reward_scale": self.iterations.scale,
        }

    # ------------------------------------------------------------------------------------------------ checkpoints

    def train(self, resume_from_checkpoint: str | os.PathLike | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """
        Warm up if `sft_epochs` says so, then train; `True` resumes from the newest checkpoint of either part.
        """
        path = resume_from_checkpoint
        warm_up = Path(self.args.output_dir) / WARM_UP
        if path is True:
            # transformers says that there is none
            path = last_checkpoint(self.args.output_dir) or last_checkpoint(warm_up) or True
        elif isinstance(path, os.PathLike):
            path = os.fspath(path)
        in_warm_up = isinstance(path, str) and Path(path).resolve().parent.name == WARM_UP
        if self.args.sft_epochs and (in_warm_up or not path):
            self._warm_up(path if in_warm_up else None)
            path = None
        output = super().train(path, *args, **kwargs)
        self._report(self.args.resample_steps > 0)
        return output

    def _warm_up(self, path: Any) -> None:
        """Supervised fine-tuning through the same loop, with its own optimizer, schedule and checkpoints."""
        args, dataset = self.args, self.train_dataset
        self.args = copy.copy(args)
        self.args.output_dir = str(Path(args.output_dir) / WARM_UP)
        self.args.num_train_epochs, self.args.max_steps = args.sft_epochs, -1
        self.args.learning_rate = args.sft_learning_rate or args.learning_rate
        self.args.eval_strategy, self.args.eval_on_start = "no", False
        self.args.load_best_model_at_end, self.args.push_to_hub = False, False
        self.train_dataset, self._warming_up, self._samples = self._sft_dataset, True, False
        self._train_prefix = f"{WARM_UP}/"
        try:
            super().train(path)
        finally:
            self.args, self.train_dataset, self._warming_up, self._samples = args, dataset, False, True
            self._train_prefix = ""
            self.optimizer, self.lr_scheduler = None, None

    def _restore_state(self, folder: Path | None) -> None:
        self.iterations = Iterations(self.args.threshold)
        if folder is None or self._warming_up:
            return
        if self._state_file(folder).is_file():
            self.iterations = Iterations.load(self._state_file(folder))
        else:
            logger.warning("%s does not exist: the threshold starts anew.", self._state_file(folder))

    def _state_file(self, folder: Path) -> Path:
        return folder / f"iterations_{self.accelerator.process_index}.json"

    def _save_state(self, folder: Path) -> None:
        if not self._warming_up:
            self.iterations.save(self._state_file(folder))


PLETrainer = PSLETrainer
