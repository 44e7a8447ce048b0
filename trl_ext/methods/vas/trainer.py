# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""The trainer of VAS: scored samples of a frozen model in, a value model out."""

import math
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from datasets import Dataset, IterableDataset
from safetensors.torch import load_file
from transformers import (
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainerCallback,
    set_seed,
)
from transformers.utils import logging

from trl_ext.atomic_files import write_tensors
from trl_ext.data.schema import AnyDataset, DataError, column_names
from trl_ext.decoding.static_generate import release_static_caches
from trl_ext.generation.generate import generate
from trl_ext.models.load import context_length
from trl_ext.rewards.functions import RewardFunc
from trl_ext.seeds import seeded
from trl_ext.training.copies import sampling_copy
from trl_ext.training.model_loading import load_frozen, place_frozen, sampling_batch_size, sampling_from
from trl_ext.training.returns import discounted_sums, td_lambda
from trl_ext.training.rollouts import Rollout, Round, score_round
from trl_ext.training.rounds import Rounds
from trl_ext.training.row_order import RepeatedSteps
from trl_ext.training.statistics import RunningColumns
from trl_ext.training.trainer import EvalDataset, ExtTrainer
from trl_ext.upstream import get_config_model_id

from .calibration import agreement, roll_out, starts
from .config import VASConfig
from .data import DataCollatorForValues, choose_heads, prepare_values, reward_tensors, totals
from .decoding.logits_processor import ValueAugmentedLogitsProcessor
from .explained_variance import Explained
from .losses import normalize, value_loss
from .token_values import States, TokenStates
from .value_model.load import load_value_model
from .value_model.model import ValueModel


if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel

logger = logging.get_logger(__name__)


class VASTrainer(ExtTrainer):
    """
    Trainer for Value Augmented Sampling (VAS).

    The method is described in [Value Augmented Sampling for Language Model Alignment and
    Personalization](https://huggingface.co/papers/2405.06639). What is trained, saved and pushed is the value model;
    the language model stays as it is.

    Args:
        model (`str`, [`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            The frozen language model: a Hub id, a directory, or a model. Given by name it is loaded only if something
            is sampled, or if the value model is an adapter on it.
        reward_funcs (`str`, `Callable`, [`~transformers.PreTrainedModel`] or a `list` of these, *optional*):
            Reward functions as in TRL's GRPO, for what is sampled in training and evaluation. Several train a head
            each, unless the config's `heads` says otherwise.
        args ([`VASConfig`], *optional*):
            Configuration; the defaults are those of the authors' code.
        train_dataset ([`~datasets.Dataset`] or [`~datasets.IterableDataset`]):
            Rows `prompt`, `completions`, `scores` (a number a completion, or a list of them, one a token), with
            `rewards` for several heads, as `trl-ext sample` writes them from the frozen model; or, with
            `reward_funcs`, `prompt` alone. Plain text or messages.
        eval_dataset ([`~datasets.Dataset`], [`~datasets.IterableDataset`] or a `dict` of them, *optional*):
            The same.
        processing_class ([`~transformers.PreTrainedTokenizerBase`], *optional*):
            Tokenizer; by default the language model's.
        reward_processing_classes (`list`, *optional*):
            Tokenizers of the reward models.
        callbacks (`list` of [`~transformers.TrainerCallback`], *optional*):
            Callbacks to add.
        optimizers (`tuple`, *optional*, defaults to `(None, None)`):
            Optimizer and scheduler to use.
        quantization_config ([`~transformers.BitsAndBytesConfig`], *optional*):
            Quantisation of the models given by name.
        peft_config ([`~peft.PeftConfig`], *optional*):
            Adapter of the value model, whose head is trained beside it.
        value_model (`str`, [`ValueModel`] or [`~transformers.PreTrainedModel`], *optional*):
            Backbone of the value model, or a value model to train further; by default the config's
            `value_model_name_or_path`. Without either, the value model is an adapter (`peft_config`) and a head on the
            language model's own weights, or (`value_form="policy"`) a head on its states as they are.

    Raises:
        `ValueError`, `TypeError`: Arguments that contradict each other; the message says which.
        [`~trl_ext.data.schema.DataError`]: A row or column that cannot be used.

    Examples:
    ```python
    >>> from datasets import load_dataset
    >>> from trl_ext import VASConfig, VASTrainer

    >>> trainer = VASTrainer(
    ...     model="Qwen/Qwen2.5-7B-Instruct",
    ...     args=VASConfig(output_dir="vas"),
    ...     train_dataset=load_dataset("json", data_files="scored.jsonl", split="train"),
    ...     value_model="Qwen/Qwen2.5-0.5B-Instruct",
    ... )
    >>> trainer.train()
    ```
    """

    args: VASConfig
    _config_class: ClassVar[type[VASConfig]] = VASConfig
    _tag_names: ClassVar = ["trl", "trl-ext", "vas"]
    _name = "VAS"
    _paper: ClassVar = {
        "title": "Value Augmented Sampling for Language Model Alignment and Personalization",
        "id": "2405.06639",
        # docstyle-ignore
        "citation": textwrap.dedent("""\
            @article{han2024value,
                title        = {{Value Augmented Sampling for Language Model Alignment and Personalization}},
                author       = {Seungwook Han and Idan Shenfeld and Akash Srivastava and Yoon Kim and Pulkit Agrawal},
                year         = 2024,
                eprint       = {arXiv:2405.06639},
            }"""),
    }
    _row_columns: ClassVar = ("token_rewards",)
    _rounds: Rounds
    # `compute_loss` divides by the tokens of all micro-batches and processes of a step.
    loss_is_scaled_for_ga = True

    def __init__(
        self,
        model: "str | PreTrainedModel | PeftModel",
        reward_funcs: RewardFunc | list[RewardFunc] | None = None,
        args: VASConfig | None = None,
        train_dataset: AnyDataset | None = None,
        eval_dataset: EvalDataset | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        reward_processing_classes: PreTrainedTokenizerBase | list[PreTrainedTokenizerBase | None] | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[torch.optim.Optimizer | None, torch.optim.lr_scheduler.LambdaLR | None] = (None, None),
        quantization_config: BitsAndBytesConfig | None = None,
        peft_config: "PeftConfig | None" = None,
        value_model: "str | PreTrainedModel | ValueModel | None" = None,
    ):
        name = model if isinstance(model, str) else get_config_model_id(model.config)
        if args is None:
            args = self._config_class(f"{name.rstrip('/').split('/')[-1]}-VAS")
        self._check_config(args)
        self._check_train_dataset(train_dataset, args)
        set_seed(args.seed)  # an adapter's initial weights are random
        self._tokenizer = self._load_tokenizer(name, model, args, processing_class)
        value_model = args.value_model_name_or_path if value_model is None else value_model

        # Data and rewards before the models: a mistake there should not cost the time of loading weights.
        self.rewards = self._load_rewards(reward_funcs, reward_processing_classes, args)
        self._raw_columns = set(column_names(train_dataset)) if self.rewards else set()
        names = [reward.name for reward in self.rewards]
        self.heads = choose_heads(train_dataset, names, args.heads, rewarded=args.num_iterations > 1)
        train_dataset = self._prepare_dataset(train_dataset, args, "train")
        eval_dataset = self._prepare_eval_dataset(eval_dataset, args)
        self._samples = self._check_sampling(args, train_dataset)

        needs_policy = value_model is None or args.value_form == "policy" or self._needs_policy(args, eval_dataset)
        self.policy = load_frozen(model, args, quantization_config) if needs_policy else None
        model = load_value_model(
            value_model, self.policy, self._tokenizer, self.heads, args, quantization_config, peft_config
        )
        rooms = [context_length(each) for each in (model.backbone, self.policy) if each is not None]
        room = min((room for room in rooms if room), default=0)
        train_dataset, eval_dataset = self._check_context(train_dataset, eval_dataset, args, room)
        self.states = States(
            model,
            self._tokenizer.pad_token_id,
            predict=args.value_form != "state",
            shared_prefix=args.shared_prefix,
            pad_to_multiple_of=args.pad_to_multiple_of,
        )
        super().__init__(
            model=model,
            args=args,
            data_collator=DataCollatorForValues(),
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=self._tokenizer,
            callbacks=callbacks,
            optimizers=optimizers,
        )
        self._begin_metrics()
        self.policy = place_frozen(self.policy, self, shared=self.model.shares_policy)
        self._begin(train_dataset)

    def _begin(self, dataset: AnyDataset) -> None:
        """What training goes through with: rounds, targets, moments of the rewards, figures."""
        args = self.args
        self._rounds = Rounds(
            lambda rows: self._sample_round(rows).rollouts,
            self.accelerator,
            every_steps=args.resample_steps,
            every_epochs=self._epochs_per_round(),
            keep=args.keep_samples,
        )
        self._targets: dict[str, torch.Tensor] = {}  # of the step that is being repeated, by the rows of a micro-batch
        self._running = RunningColumns(len(self.heads))
        if args.normalize_rewards and not self._samples and isinstance(dataset, Dataset):
            self._observe(dataset["token_rewards"], share=False)
        self._explained = Explained(self.heads)
        self._calibration: dict[str, float] = {}

    # ------------------------------------------------------------------------------------------------ preparation

    def _tokenize(self, dataset: AnyDataset, args: VASConfig, name: str) -> tuple[AnyDataset, int]:
        settings: dict[str, Any] = {"max_length": args.max_length, "num_proc": args.dataset_num_proc}
        return prepare_values(dataset, self._tokenizer, name=name, heads=self.heads, **settings)

    def _needs_policy(self, args: VASConfig, evals: Any) -> bool:
        """Whether something is sampled, in training or evaluation."""
        parts = evals.values() if isinstance(evals, dict) else [evals]
        prompts_alone = any(part is not None and "completion_ids" not in column_names(part) for part in parts)
        return bool(self._samples or args.calibration_rollouts or prompts_alone)

    def _check_sampling(self, args: VASConfig, dataset: AnyDataset) -> bool:
        """Whether training samples completions; raise if the settings ask for what cannot be done."""
        has_completions = "completion_ids" in column_names(dataset)
        if not has_completions and not self.rewards:
            raise DataError(
                "The train data set has prompts but no completions. Add the columns `completions` and `scores` "
                "(`trl-ext sample` makes them), or pass `reward_funcs` to sample in training."
            )
        for setting in ("num_iterations", "resample_steps"):
            if getattr(args, setting) > (setting == "num_iterations") and not self.rewards:
                raise ValueError(f"`{setting}` needs `reward_funcs` to score new completions.")
        if args.calibration_rollouts and not self.rewards:
            raise ValueError("`calibration_rollouts` needs `reward_funcs` to score the continuations.")
        if args.resample_steps and has_completions:
            raise ValueError("`resample_steps` is for prompts alone, but the train data set has completions.")
        if args.sampling_beta and args.num_iterations == 1:
            logger.warning(
                "`sampling_beta` is not used: it guides sampling after the first of `num_iterations` rounds."
            )
        samples = not has_completions or args.num_iterations > 1
        if self.rewards and not samples and not args.calibration_rollouts:
            logger.warning("The train data set has completions: `reward_funcs` are used in evaluation only.")
        if isinstance(dataset, IterableDataset):
            if samples and not args.resample_steps:
                raise ValueError("A streamed data set has no epochs to sample for; set `resample_steps`.")
            if args.num_epochs_per_batch > 1:
                raise ValueError("A streamed data set is read once: set num_epochs_per_batch=1.")
        return samples

    def _epochs_per_round(self) -> int:
        return int(self.args.num_train_epochs // self.args.num_iterations) if self.args.num_iterations > 1 else 0

    # ---------------------------------------------------------------------------------------------------- sampling

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        if self.args.num_epochs_per_batch == 1:
            return super()._get_train_sampler(train_dataset)
        dataset = self.train_dataset if train_dataset is None else train_dataset
        return RepeatedSteps.of(self, dataset, self.args.num_epochs_per_batch)

    def get_batch_samples(
        self, epoch_iterator: Iterator[dict[str, Any]], num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, Any]], int | None]:
        """The micro-batches of one optimizer step, with completions, and the tokens of all processes in them."""
        if self._samples:
            epoch = int(self.state.epoch or 0)
            batches = self._rounds.batches(epoch_iterator, num_batches, epoch, self.train_dataset)
            for batch in batches:
                batch["token_rewards"] = [
                    self._by_head(rewards, scores)
                    for rewards, scores in zip(batch.pop("rewards"), batch["scores"], strict=True)
                ]
        else:
            batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
            if self.args.normalize_rewards and isinstance(self.train_dataset, IterableDataset):
                self._observe([group for batch in batches for group in batch["token_rewards"]])
        if self.state.global_step % self.args.num_epochs_per_batch == 0:
            self._targets.clear()
        if not batches:
            return batches, None
        tokens = sum(len(c) for batch in batches for group in batch["completion_ids"] for c in group)
        count = torch.tensor(tokens, device=self.accelerator.device)
        return batches, max(1, int(self.accelerator.reduce(count, reduction="sum")))

    def _by_head(self, rewards: dict[str, list[float]], scores: list[float]) -> list[list[list[float]]]:
        """Rewards of the sampled completions of a prompt as `token_rewards`."""
        columns = [rewards.get(head, scores) for head in self.heads]
        return [[[] if math.isnan(x) else [x] for x in entries] for entries in zip(*columns, strict=True)]

    def _round(self) -> int:
        """Number of the current round, from 0."""
        return int(self.state.epoch or 0) // self._epochs_per_round() if self._epochs_per_round() else 0

    def _sample_round(self, rows: list[dict[str, Any]], mode: str = "train") -> Round:
        """Sample and score completions for `rows`, and log what came out."""
        args = self.args
        if mode == "train" and not self._round() and "completion_ids" in (rows[0] if rows else {}):
            sampled = Round({row["row_index"]: self._own(row) for row in rows})  # the data set's, in the first round
        else:
            guided = bool(mode == "train" and self._round() and args.sampling_beta)
            with self._chance(mode), self._sampling_policy() as policy:
                completions = generate(
                    policy,
                    self._tokenizer,
                    [row["prompt_ids"] for row in rows],
                    args.generation_settings(),
                    batch_size=sampling_batch_size(self),
                    processors=self._guides() if guided else None,
                )
                release_static_caches(policy)  # the value model's training may need their memory
            sampled = score_round(
                rows, completions, self.rewards, args.reward_weights, max_length=args.max_length,
                tokenizer=self._tokenizer, trainer_state=self.state,
            )  # fmt: skip
            self._show_round(sampled, mode)
        if mode == "train" and args.normalize_rewards and not self._round():
            self._observe([self._by_head(r.rewards, r.scores) for r in sampled.rollouts.values()])
        return sampled

    def _own(self, row: dict[str, Any]) -> Rollout:
        if any(len(numbers) > 1 for by_head in row["token_rewards"] for numbers in by_head):
            raise DataError(
                f"Row {row['row_index']}: rewards token by token cannot be joined by completions that are sampled and "
                "scored in training. Set num_iterations=1."
            )
        rewards = {head: totals([row["token_rewards"]], h) for h, head in enumerate(self.heads)}
        return Rollout(row["completion_ids"], row["scores"], rewards)

    def _sampling_policy(self) -> Any:
        return sampling_from(self.policy, self, shared=self.model.shares_policy)

    def _guides(self) -> Callable[[torch.Tensor, torch.Tensor], list[ValueAugmentedLogitsProcessor]]:
        """What makes the guide of a batch of prompts, with the value model as it is now."""
        args = self.args
        weights = dict(zip([reward.name for reward in self.rewards], args.reward_weights or [], strict=False))
        beta = {head: args.sampling_beta * weights.get(head, 1.0) for head in self.heads}
        # A copy of an adapter on the policy would be a copy of the policy.
        value_model = self.model if self.model.shares_policy else sampling_copy(self.model, args)

        def guides(ids_PT: torch.Tensor, mask_PT: torch.Tensor) -> list[ValueAugmentedLogitsProcessor]:
            return [
                ValueAugmentedLogitsProcessor(
                    value_model,
                    beta=beta if len(beta) > 1 else args.sampling_beta,
                    top_k=args.sampling_candidates,
                    pad_token_id=self._tokenizer.pad_token_id,
                    attention_mask=mask_PT,
                )
            ]

        return guides

    def _observe(self, groups: list[Any], share: bool = True) -> None:
        """Take rewards into the mean and deviation that they are normalised by, alike on every process."""
        numbers = [totals(groups, h) for h in range(len(self.heads))]
        self._running.add(numbers, self.accelerator if share else None)
        self._record_normalization()

    def _record_normalization(self) -> None:
        self.model.config.reward_mean, self.model.config.reward_std = self._running.means, self._running.stds

    # -------------------------------------------------------------------------------------------------------- loss

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """
        0.5 * (V - target)^2, summed over heads and averaged over tokens.

        With `num_items_in_batch` (the tokens of all micro-batches and processes of a step) the sum over this batch is
        divided by that number, so that neither accumulation nor unequal batches change the gradient.
        """
        kept = [b for b, group in enumerate(inputs["completion_ids"]) if group]
        if not kept:
            return self._zero_loss(lambda prompts, some: self.states(model, prompts, some).states, inputs)
        prompts = [inputs["prompt_ids"][b] for b in kept]
        completions = [inputs["completion_ids"][b] for b in kept]
        tokens = self.states(model, prompts, completions)
        lengths = [len(c) for group in completions for c in group]
        device = tokens.states.device
        rewards_NTH, known_NH = (
            x.to(device) for x in reward_tensors([inputs["token_rewards"][b] for b in kept], lengths, len(self.heads))
        )
        mask_NTH = tokens.mask[..., None] & known_NH[:, None]
        config = self.model.config
        mean_H, std_H = (torch.tensor(x, device=device) for x in (config.reward_mean, config.reward_std))
        rewards_NTH = normalize(rewards_NTH, tokens.mask, mean_H, std_H).masked_fill(~mask_NTH, 0.0)
        targets_NTH = self._targets_of(inputs, tokens, rewards_NTH)
        loss_NTH = value_loss(tokens.states, targets_NTH, mask_NTH)
        self._measure(tokens, rewards_NTH, mask_NTH, loss_NTH)
        if self.model.training:
            self._num_tokens += sum(map(len, prompts)) + sum(lengths)
        loss = self._mean(loss_NTH.sum(), sum(lengths), num_items_in_batch)
        return (loss, {"values": tokens.states}) if return_outputs else loss

    def _targets_of(self, inputs: dict[str, Any], tokens: TokenStates, rewards_NTH: torch.Tensor) -> torch.Tensor:
        """
        TD(lambda) targets from the values before the first update on this batch; in evaluation plain returns.

        Targets that follow the values say how consistent these are; how right they are is for evaluation to say.
        """
        key = ",".join(map(str, inputs["row_index"].tolist()))
        if self.model.training and key in self._targets:
            return self._targets[key].to(tokens.states.device)
        lam = self.args.lam if self.model.training else 1.0
        values_NTH, mask_NT1 = tokens.states.detach(), tokens.mask[..., None]
        targets_NTH = td_lambda(rewards_NTH, values_NTH, mask_NT1, self.args.gamma, lam)
        if self.model.training and self.args.num_epochs_per_batch > 1:
            self._targets[key] = targets_NTH
        return targets_NTH

    @torch.no_grad()
    def _measure(
        self, tokens: TokenStates, rewards_NTH: torch.Tensor, mask_NTH: torch.Tensor, loss_NTH: torch.Tensor
    ) -> None:
        mode = "train" if self.model.training else "eval"
        if mode == "eval":
            self._meters[mode].add("loss", loss_NTH.sum(), tokens.mask.sum())  # pooled, as rows differ in tokens
        self._explained.add(mode, tokens.states, discounted_sums(rewards_NTH, self.args.gamma), mask_NTH)

    def _figures(self, mode: str) -> dict[str, float]:
        """How well the values explain the returns, and in evaluation what came of half completions."""
        calibration, self._calibration = (self._calibration, {}) if mode == "eval" else ({}, self._calibration)
        return self._explained.pop(mode, self.accelerator) | calibration

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        with self.model.hold_adapter():
            return super().training_step(*args, **kwargs)

    # -------------------------------------------------------------------------------------------------- evaluation

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """
        Loss against the returns themselves (as with `lam=1`), and how well the values explain and follow them, on a
        data set (by default the constructor's), whose rows may have any of the forms that training takes.

        With `calibration_rollouts` also `calibration/r2` and `calibration/correlation` of the value half-way through a
        completion with the mean reward of continuations that the frozen model draws from there.
        """
        return super().evaluate(*args, **kwargs)

    def _before_evaluation(self, dataset: AnyDataset) -> None:
        self._calibration = self._calibrate(dataset) if self.args.calibration_rollouts else {}

    def prediction_step(
        self, model: torch.nn.Module, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: Any = None
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        if not any(inputs["completion_ids"]):
            if not self.rewards or self.policy is None:
                raise DataError(
                    "The eval data set has prompts but no completions. Score it (`trl-ext sample`), or pass it with "
                    "`reward_funcs` to the constructor, which then keeps the language model to sample with."
                )
            rows = [{**row, "row_index": n} for n, row in enumerate(inputs["rows"])]
            rollouts = list(self._sample_round(rows, "eval").rollouts.values())
            self._eval_batches += 1
            inputs["completion_ids"] = [rollout.completion_ids for rollout in rollouts]
            inputs["token_rewards"] = [self._by_head(rollout.rewards, rollout.scores) for rollout in rollouts]
        with torch.no_grad(), self.compute_loss_context_manager():
            return self.compute_loss(model, inputs).detach(), None, None

    def _calibrate(self, dataset: AnyDataset) -> dict[str, float]:
        """Correlation and R^2 of the value half-way with the mean reward of what the frozen model makes of it."""
        args, process = self.args, self.accelerator.process_index
        rows = list(dataset.take(args.calibration_states)) if isinstance(dataset, IterableDataset) else list(dataset)
        settings, batch_size = args.generation_settings(), sampling_batch_size(self)
        with seeded(args.seed, -1_000_003, process), self._sampling_policy() as policy:
            states = starts(policy, self._tokenizer, rows, settings, args.calibration_states, batch_size=batch_size)
            states = states[process :: self.accelerator.num_processes]
            settings = replace(settings, num_generations=args.calibration_rollouts)
            table = roll_out(
                policy, self._tokenizer, states, settings, self.rewards, args.reward_weights,
                batch_size=batch_size, trainer_state=self.state,
            )  # fmt: skip
            values_NH = self._values_at(states)
        return agreement(values_NH, table, self.heads, self.accelerator)

    def _values_at(self, states: list[Any]) -> torch.Tensor:
        """Values of half completions, in units of the rewards."""
        found, size = [], sampling_batch_size(self)
        for start in range(0, len(states), size):
            part = states[start : start + size]
            tokens = self.states(self.model, [s.row["prompt_ids"] for s in part], [[s.completion_ids] for s in part])
            last_N = tokens.mask.sum(dim=1) - 1
            found.append(tokens.states[torch.arange(len(part)), last_N].float().cpu())
        values_NH = torch.cat(found) if found else torch.zeros(0, len(self.heads))
        config = self.model.config
        return values_NH * torch.tensor(config.reward_std) + torch.tensor(config.reward_mean)

    # ------------------------------------------------------------------------------------------------- checkpoints

    def _save_state(self, folder: Path) -> None:
        if self._targets and self.state.global_step % self.args.num_epochs_per_batch:
            write_tensors(self._targets_file(folder), self._targets)
        if self.args.normalize_rewards and self.accelerator.is_main_process:
            self._running.save(folder / "normalization.json")

    def _targets_file(self, folder: Path) -> Path:
        return folder / f"targets_{self.accelerator.process_index}.safetensors"

    def _restore_state(self, folder: Path | None) -> None:
        """Targets of a step that was being repeated, and what rewards are normalised by."""
        self._targets = {}
        if folder is None:
            return
        if self._targets_file(folder).is_file():
            self._targets = load_file(self._targets_file(folder))
        if self.args.normalize_rewards and (folder / "normalization.json").is_file():
            self._running.load(folder / "normalization.json")
            self._record_normalization()
