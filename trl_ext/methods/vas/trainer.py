# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Trainer of VAS: trains a value model on scored samples of a frozen language model."""

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
    EvalPrediction,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainerCallback,
)
from transformers.utils import logging

from trl_ext.atomic_files import write_tensors
from trl_ext.cards import link, quoted
from trl_ext.data.row_errors import located
from trl_ext.data.schema import AnyDataset, DataError, column_names, where
from trl_ext.data.scored_rows import REWARD_FLAGS, lacks_completions
from trl_ext.decoding.static_generate import release_static_caches
from trl_ext.generation.generate import Processors, generate
from trl_ext.logprobs.balancing_loss import router_aux_loss_coef
from trl_ext.models.properties import context_length, embedding_rows
from trl_ext.progress import titled
from trl_ext.rewards.functions import RewardFunc
from trl_ext.seeds import seeded
from trl_ext.training.copies import sampling_copy
from trl_ext.training.frozen_model import load_frozen, place_frozen, sampling_batch_size, sampling_from
from trl_ext.training.model_card import TrainedModel
from trl_ext.training.predictions import completion_table
from trl_ext.training.returns import discounted_sums, td_lambda
from trl_ext.training.rollouts import Rollout, Round, score_round
from trl_ext.training.rounds import RolloutSchedule, resample_stream
from trl_ext.training.row_order import steps_in_epoch
from trl_ext.training.statistics import RunningColumns
from trl_ext.training.summary import Run, describe_generate, describe_model, model_label
from trl_ext.training.trainer import EvalDataset, ExtTrainer
from trl_ext.training.trl_settings import FROZEN_MODEL_ARGUMENTS

from . import value_prompts
from .calibration import HalfCompletion, measure_calibration, roll_out, sample_halves
from .config import VASConfig
from .data import (
    DEFAULT_HEAD,
    DataCollatorForValues,
    choose_heads,
    prepare_values,
    read_prompt,
    reward_tensors,
    total_rewards,
)
from .decoding.logits_processor import ValueAugmentedLogitsProcessor
from .explained_variance import measure_values
from .loading import load_value_model, trained_on_policy
from .losses import categorical_loss, normalize, value_loss
from .token_values import CompletionValues, TokenValues
from .value_model.card import TAG, quick_start, summary_of
from .value_model.model import ValueModel


if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel

logger = logging.get_logger(__name__)


class VASTrainer(ExtTrainer):
    """
    Trainer for Value Augmented Sampling (VAS).

    The method is described in [Value Augmented Sampling for Language Model Alignment and
    Personalization](https://huggingface.co/papers/2405.06639). The value model is trained, saved and pushed; the
    language model does not change.

    Args:
        model (`str`, [`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            The frozen language model: a Hub id, a directory, or a model. Given by name, it is loaded only if
            completions are sampled, or if the value model shares its weights.
        reward_funcs (`str`, `Callable`, [`~transformers.PreTrainedModel`] or a `list` of these, *optional*):
            Reward functions as in TRL's GRPO, for completions that are sampled in training and evaluation. Several
            train one head each, unless the config has `heads`.
        args ([`VASConfig`], *optional*):
            Configuration. The defaults are those of the authors' code.
        train_dataset ([`~datasets.Dataset`] or [`~datasets.IterableDataset`]):
            Rows with `prompt`, `completions` and `scores` (a number per completion, or a list of numbers, one per
            token), and `rewards` for several heads, as `trl-ext sample` writes them from the frozen model; or, with
            `reward_funcs`, a prompt-only dataset. Plain text or messages.
        eval_dataset ([`~datasets.Dataset`], [`~datasets.IterableDataset`] or a `dict` of them, *optional*):
            The same.
        processing_class ([`~transformers.PreTrainedTokenizerBase`], *optional*):
            Tokenizer. By default the language model's.
        reward_processing_classes (`list`, *optional*):
            Tokenizers of the reward models.
        callbacks (`list` of [`~transformers.TrainerCallback`], *optional*):
            Callbacks to add.
        optimizers (`tuple`, *optional*, defaults to `(None, None)`):
            Optimizer and scheduler to use.
        quantization_config ([`~transformers.BitsAndBytesConfig`], *optional*):
            Quantisation of the models given by name.
        peft_config ([`~peft.PeftConfig`], *optional*):
            Adapter of the value model, which is trained together with its heads.
        value_model (`str`, [`ValueModel`] or [`~transformers.PreTrainedModel`], *optional*):
            Backbone of the value model, or a value model to train further. By default the config's
            `value_model_name_or_path`. Without either, the value model shares the language model's weights: it is an
            adapter (`peft_config`) and a head, or, with `value_form="policy"`, a head on its hidden states.
        compute_metrics (`Callable`, *optional*):
            Called at evaluation with predictions the mean value of the tokens of each completion and label_ids its
            reward, both in units of the rewards and of shape (rows, K), or (rows, K, heads) if there are several
            heads; NaN where a row has fewer completions or a reward is unknown.

    Raises:
        `ValueError`, `TypeError`: Arguments contradict each other; the message names them.
        [`~trl_ext.data.schema.DataError`]: A row or column cannot be used; the message names it.

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
    _refused_arguments = FROZEN_MODEL_ARGUMENTS
    _tag_names: ClassVar = ["trl", "trl-ext", "vas", TAG]
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
    _row_columns: ClassVar = ("token_rewards", value_prompts.IDS)
    _rounds: RolloutSchedule
    # `compute_loss` divides by the number of tokens in all micro-batches and processes of a step.
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
        compute_metrics: Callable[[EvalPrediction], dict] | None = None,
    ):
        args = self._config_for(model, args)
        # Data and rewards before the models: an error in them should come before weights are loaded.
        train_dataset = self._setup(
            model, args, train_dataset, processing_class, reward_funcs, reward_processing_classes
        )
        names = [reward.name for reward in self.rewards]
        self.heads = choose_heads(train_dataset, names, args.heads, rewarded=args.num_iterations > 1)
        train_dataset, eval_dataset = self._prepare_datasets(train_dataset, eval_dataset, args)
        self._samples = self._check_sampling(args, train_dataset)

        value_model = args.value_model_name_or_path if value_model is None else value_model
        needs_policy = value_model is None or args.value_form == "policy" or self._needs_policy(args, eval_dataset)
        trained = trained_on_policy(value_model, model)
        of_policy = quantization_config if isinstance(model, str) or not isinstance(value_model, str) else None
        self.policy = load_frozen(model, args, of_policy) if needs_policy else None
        for parameter in trained:
            parameter.requires_grad_(True)
        if self.policy is not None:
            self._check_end_of_answers(self.policy, args, train_dataset)
        model = load_value_model(
            value_model, self.policy, self._tokenizer, self.heads, args, quantization_config, peft_config
        )
        model.config.value_prompt = self._reads_value_prompts
        models = [each for each in (model.backbone, self.policy) if each is not None]
        self._embeddings = min(filter(None, map(embedding_rows, models)), default=0)
        self._trained = trained_on_policy(model)
        contexts = [context_length(each) for each in (model.backbone, self.policy) if each is not None]
        context = min((length for length in contexts if length), default=0)
        train_dataset, eval_dataset = self._check_context_lengths(train_dataset, eval_dataset, args, context)
        if not model.config.head_only:  # otherwise the backbone is not trained
            self.router_aux_loss_coef = router_aux_loss_coef(model.backbone, args.router_aux_loss_coef)
        self.token_values = CompletionValues(
            model,
            self._tokenizer.pad_token_id,
            predict=args.value_form != "state",
            shared_prefix=args.shared_prefix,
            pad_to_multiple_of=args.pad_to_multiple_of,  # type: ignore[arg-type]  # a number since it was checked
        )
        super().__init__(
            model,
            args,
            data_collator=DataCollatorForValues(),
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            compute_metrics=compute_metrics,
            callbacks=callbacks,
            optimizers=optimizers,
        )
        self.policy = place_frozen(self.policy, self, shared=self.model.shares_policy)
        self._begin(train_dataset)

    def _begin(self, dataset: AnyDataset) -> None:
        """Initialise the state of training: rounds, targets, reward statistics and metrics."""
        args = self.args
        self._rounds = RolloutSchedule(
            lambda rows: self._sample_round(rows).rollouts,
            self.accelerator,
            every_steps=args.resample_steps,
            every_epochs=self._epochs_per_round(),
            keep=args.keep_samples,
        )
        self._targets: dict[str, torch.Tensor] = {}  # of the batch that is being repeated, by its rows
        self._reward_statistics = RunningColumns(len(self.heads))
        if not self._samples and isinstance(dataset, Dataset):
            self._add_rewards(dataset["token_rewards"], gather=False)
        if self.args.atoms:
            self._set_range(dataset)

    def _set_range(self, dataset: AnyDataset) -> None:
        """The returns that the atoms of categorical heads stand for: those of the settings, or of the dataset."""
        args, config = self.args, self.model.config
        if config.low is not None and args.value_range is not None:
            raise ValueError(
                "`value_range` is that of a new value model, and this one has learned with "
                f"{list(zip(config.low, config.high, strict=True))}: leave it out."
            )
        if config.low is not None:
            return
        known = not self._samples and isinstance(dataset, Dataset)
        if not known and (args.value_range is None or args.normalize_rewards):
            raise ValueError(
                "`value_head='categorical'` needs the range of the returns before training, and the rewards of "
                "completions that are sampled, or read from a stream, are not known then: set `value_range`, and "
                "normalize_rewards=False."
            )
        low, high = [], []
        for h, head in enumerate(self.heads):
            found = args.value_range or _range_of(total_rewards(dataset["token_rewards"], h), head)
            scaled = [(x - config.reward_mean[h]) / config.reward_std[h] for x in found]
            low.append(scaled[0])
            high.append(scaled[1])
        config.low, config.high = low, high

    def train(self, *args: Any, **kwargs: Any) -> Any:
        for parameter in self._trained:  # which another trainer of the same language model may have frozen
            parameter.requires_grad_(True)
        return super().train(*args, **kwargs)

    # ------------------------------------------------------------------------------------------------ preparation

    def _trained_model(self, place: str, language_model: str) -> TrainedModel:
        config = self.model.config
        model, shared = quoted(language_model, published=bool(self.hub_model_id)), self.model.shares_policy
        summary = summary_of(self.heads, link(language_model))
        code = quick_start(self.heads, model, place, shared=shared, value_prompt=config.value_prompt)
        return TrainedModel(summary, code, "trl-ext", [language_model, config.backbone_name])

    def _tokenize(self, dataset: AnyDataset, args: VASConfig, name: str) -> tuple[AnyDataset, int]:
        has_column = value_prompts.COLUMN in column_names(dataset)
        if name == "train":
            self._reads_value_prompts = has_column
            if has_column and args.value_form == "policy":
                raise ValueError(
                    f"A value model of the form 'policy' reads the language model's hidden states, not the column "
                    f"`{value_prompts.COLUMN}`: set `value_form` to 'state' or 'action', or remove the column."
                )
        value_prompts.check_column(column_names(dataset), self._reads_value_prompts, name=name)
        settings: dict[str, Any] = {
            "max_length": args.max_length,
            "num_proc": args.dataset_num_proc,
            "chat_template_kwargs": args.chat_template_kwargs,
        }
        return prepare_values(dataset, self._tokenizer, name=name, heads=self.heads, **settings)

    def _check_context_length(self, dataset: AnyDataset, args: Any, name: str, *, samples: bool = False) -> AnyDataset:
        generated = args.max_completion_length if samples or "completion_ids" not in column_names(dataset) else 0
        dataset = value_prompts.check_lengths(dataset, self._context, name=name, max_new_tokens=generated)
        return super()._check_context_length(dataset, args, name, samples=samples)

    def _needs_policy(self, args: VASConfig, evals: Any) -> bool:
        """Whether completions are sampled, in training or evaluation."""
        parts = evals.values() if isinstance(evals, dict) else [evals]
        prompt_only = any(part is not None and "completion_ids" not in column_names(part) for part in parts)
        return bool(self._samples or args.calibration_rollouts or prompt_only)

    def _check_sampling(self, args: VASConfig, dataset: AnyDataset) -> bool:
        """Whether training samples completions; raise an error for settings that do not fit the dataset."""
        has_completions = "completion_ids" in column_names(dataset)
        if not has_completions and not self.rewards:
            raise lacks_completions(column_names(dataset), "train")
        for setting in ("num_iterations", "resample_steps"):
            if getattr(args, setting) > (setting == "num_iterations") and not self.rewards:
                raise ValueError(f"`{setting}` needs `reward_funcs` {REWARD_FLAGS} to score new completions.")
        if args.calibration_rollouts and not self.rewards:
            raise ValueError(f"`calibration_rollouts` needs `reward_funcs` {REWARD_FLAGS} to score the continuations.")
        if args.resample_steps and has_completions:
            raise ValueError("`resample_steps` is for prompt-only datasets, but the train dataset has completions.")
        if args.sampling_beta and args.num_iterations == 1:
            logger.warning(
                "`sampling_beta` is not used: it guides sampling after the first of `num_iterations` rounds."
            )
        samples = not has_completions or args.num_iterations > 1
        if self.rewards and not samples and not args.calibration_rollouts:
            logger.warning("The train dataset has completions: `reward_funcs` are used in evaluation only.")
        if isinstance(dataset, IterableDataset):
            if args.num_epochs_per_batch > 1:
                raise ValueError("A streamed dataset is read once: set num_epochs_per_batch=1.")
            if args.num_iterations > 1:
                raise ValueError("A streamed dataset has no epochs for `num_iterations` rounds: set `resample_steps`.")
            if samples:
                resample_stream(args, dataset)
        elif args.num_iterations > 1 and args.max_steps > 0:
            _check_max_steps(args, dataset)
        return samples

    def _epochs_per_round(self) -> int:
        return int(self.args.num_train_epochs // self.args.num_iterations) if self.args.num_iterations > 1 else 0

    def _rounds_in_dataset(self) -> int:
        return int("completion_ids" in column_names(self.train_dataset))

    def _models_in_memory(self) -> list[Any]:
        if self.model.shares_policy:
            return [self.policy]
        return [self.model.backbone if self.policy is None else self.policy, self.model.backbone]

    def _completions_in_step(self, in_dataset: int) -> int:
        generated = self.args.completions_per_prompt()
        if not (self._samples and in_dataset):  # the dataset's are those of the first round
            return super()._completions_in_step(in_dataset)
        if self.args.keep_samples:
            return in_dataset + (self.args.num_iterations - 1) * generated
        return max(in_dataset, generated)

    def _summary(self, run: Run) -> dict[str, str]:
        lines = super()._summary(run)
        backbone = "the policy's weights" if self.model.shares_policy else model_label(self.model.config.backbone_name)
        value_model = f"form `{self.args.value_form}` on {backbone}, heads {', '.join(self.heads)}"
        if self.args.atoms:
            config = self.model.config
            ranges = [f"{low:.3g} to {high:.3g}" for low, high in zip(config.low, config.high, strict=True)]
            value_model += f", distributions over {self.args.atoms} numbers ({', '.join(ranges)})"
        lines["model"] = "not loaded, as the dataset has the completions"
        if self.policy is not None:
            lines["model"] = describe_model(self.policy, self._language_model, self) + ", frozen"
        if self._samples:
            lines["engine"] = describe_generate(self.args, sampling_batch_size(self))
        return {"model": lines.pop("model"), "value model": value_model, **lines}

    # ---------------------------------------------------------------------------------------------------- sampling

    def _repeats(self) -> int:
        return self.args.num_epochs_per_batch

    def _batches_of_step(
        self, epoch_iterator: Iterator[dict[str, Any]], num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, Any]], int | None]:
        """The micro-batches of one optimizer step, with completions, and their number of tokens on all processes."""
        if self._samples:
            epoch = int(self.state.epoch or 0)
            batches = self._rounds.batches(epoch_iterator, num_batches, epoch, self.train_dataset)
            for batch in batches:
                batch["token_rewards"] = [
                    self._by_head(rewards, scores)
                    for rewards, scores in zip(batch.pop("rewards"), batch["scores"], strict=True)
                ]
        else:
            batches, _ = super()._batches_of_step(epoch_iterator, num_batches, device)
            if self.args.normalize_rewards and isinstance(self.train_dataset, IterableDataset):
                self._add_rewards([group for batch in batches for group in batch["token_rewards"]])
        if self.state.global_step % self.args.num_epochs_per_batch == 0:
            self._targets.clear()
        if not batches:
            return batches, None
        tokens = sum(len(c) for batch in batches for group in batch["completion_ids"] for c in group)
        return batches, max(1, self._over_processes(tokens))

    def _by_head(self, rewards: dict[str, list[float]], scores: list[float]) -> list[list[list[float]]]:
        """Rewards of the sampled completions of a prompt in the form of `token_rewards`."""
        columns = [rewards.get(head, scores) for head in self.heads]
        return [[[] if math.isnan(x) else [x] for x in entries] for entries in zip(*columns, strict=True)]

    def _round(self) -> int:
        """Index of the current round."""
        return int(self.state.epoch or 0) // self._epochs_per_round() if self._epochs_per_round() else 0

    def _sample_round(self, rows: list[dict[str, Any]], mode: str = "train") -> Round:
        """Sample and score completions for `rows`, and log them."""
        args = self.args
        if mode == "train" and not self._round() and "completion_ids" in (rows[0] if rows else {}):
            sampled = Round({row["row_index"]: self._dataset_rollout(row) for row in rows})
        else:
            guided = bool(mode == "train" and self._round() and args.sampling_beta)
            with self._seeded(mode), self._sampling_policy() as policy:
                completions = generate(
                    policy,
                    self._tokenizer,
                    [row["prompt_ids"] for row in rows],
                    args.generation_settings(mode),
                    batch_size=sampling_batch_size(self),
                    processors=self._guides(rows) if guided else None,
                )
                release_static_caches(policy)  # frees the memory of CUDA graphs for the training of the value model
            sampled = score_round(
                rows, completions, self.rewards, args.reward_weights, max_length=args.max_length,
                tokenizer=self._tokenizer, **self._scoring,
                keep_truncated=not args.mask_truncated_completions or mode != "train",
            )  # fmt: skip
            self._log_round(sampled, mode)
            if self.heads == [DEFAULT_HEAD]:  # the weighted sum, also if a function has this name
                for rollout in sampled.rollouts.values():
                    rollout.rewards = {DEFAULT_HEAD: rollout.scores}
        if mode == "train" and not self._round():
            self._add_rewards([self._by_head(r.rewards, r.scores) for r in sampled.rollouts.values()])
        return sampled

    def _dataset_rollout(self, row: dict[str, Any]) -> Rollout:
        """The completions and scores of a row of the dataset, which are those of the first round."""
        if any(len(numbers) > 1 for by_head in row["token_rewards"] for numbers in by_head):
            raise DataError(
                f"{where(row['row_index'], 'train')}: rewards per token cannot be combined with completions that are "
                "sampled and scored in training. Set num_iterations=1."
            )
        rewards = {head: total_rewards([row["token_rewards"]], h) for h, head in enumerate(self.heads)}
        return Rollout(row["completion_ids"], row["scores"], rewards)

    def _sampling_policy(self) -> Any:
        return sampling_from(self.policy, self, shared=self.model.shares_policy)

    def _guides(self, rows: list[dict[str, Any]]) -> Processors:
        """A function that creates the logits processor for a batch of these rows, with the current value model."""
        args = self.args
        prompts = self._value_prompts(rows)
        weights = dict(zip([reward.name for reward in self.rewards], args.reward_weights or [], strict=False))
        beta = {head: args.sampling_beta * weights.get(head, 1.0) for head in self.heads}
        # If they share weights, a copy of the value model would be a copy of the policy.
        value_model = self.model if self.model.shares_policy else sampling_copy(self.model, args)

        def guides(ids_PT: torch.Tensor, mask_PT: torch.Tensor) -> list[ValueAugmentedLogitsProcessor]:
            return [
                ValueAugmentedLogitsProcessor(
                    value_model,
                    beta=beta if len(beta) > 1 else args.sampling_beta,
                    top_k=args.sampling_candidates,
                    pad_token_id=self._tokenizer.pad_token_id,
                    attention_mask=mask_PT,
                    value_prompts=None if prompts is None else prompts.of(ids_PT, mask_PT),
                )
            ]

        return guides

    def _value_prompts(self, rows: list[dict[str, Any]]) -> value_prompts.ValuePrompts | None:
        """What the value model reads for the prompts of these rows, if that is another prompt."""
        if not self._reads_value_prompts:
            return None
        found = value_prompts.ValuePrompts(self._tokenizer)
        for row in rows:
            with located(where(row["row_index"], "train")):
                found.add(row["prompt_ids"], row[value_prompts.IDS])
        return found

    def _add_rewards(self, groups: list[Any], gather: bool = True) -> None:
        """Add rewards, those of all processes if `gather`, to the statistics of the data."""
        numbers = [total_rewards(groups, h) for h in range(len(self.heads))]
        self._reward_statistics.add(numbers, self.accelerator if gather else None)
        self._record_statistics()

    def _record_statistics(self) -> None:
        config, found = self.model.config, self._reward_statistics
        config.observed_mean, config.observed_std = found.means, found.stds
        if self.args.normalize_rewards:
            config.reward_mean, config.reward_std = found.means, found.stds

    # -------------------------------------------------------------------------------------------------------- loss

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """
        0.5 * (V - target)^2, or the cross-entropy of categorical heads, summed over heads and averaged over tokens.

        With `num_items_in_batch` (the number of tokens in all micro-batches and processes of a step) the sum over this
        batch is divided by that number, so that the gradient does not depend on how a step is split.
        """
        kept = [b for b, group in enumerate(inputs["completion_ids"]) if group]
        if not kept:
            loss = self._zero_loss(lambda prompts, some: self.token_values(model, prompts, some).values, inputs)
            return (loss, {}) if return_outputs else loss
        prompts = [inputs["prompt_ids"][b] for b in kept]
        completions = [inputs["completion_ids"][b] for b in kept]
        tokens = self.token_values(model, prompts, completions, aux_loss=self.aux_loss_enabled)
        lengths = [len(c) for group in completions for c in group]
        device = tokens.values.device
        rewards_NTH, known_NH = (
            x.to(device) for x in reward_tensors([inputs["token_rewards"][b] for b in kept], lengths, len(self.heads))
        )
        mask_NTH = tokens.mask[..., None] & known_NH[:, None]
        config = self.model.config
        mean_H, std_H = (torch.tensor(x, device=device) for x in (config.reward_mean, config.reward_std))
        rewards_NTH = normalize(rewards_NTH, tokens.mask, mean_H, std_H).masked_fill(~mask_NTH, 0.0)
        targets_NTH = self._targets_of(inputs, tokens, rewards_NTH)
        if tokens.logits is None:
            loss_NTH = value_loss(tokens.values, targets_NTH, mask_NTH)
        else:
            loss_NTH = categorical_loss(tokens.logits, targets_NTH, mask_NTH, self.model.atoms(device))
        self._measure(tokens, rewards_NTH, mask_NTH, loss_NTH)
        self._add_tokens(prompts, completions)
        loss = self._mean(loss_NTH.sum(), sum(lengths), num_items_in_batch)
        loss = self._with_aux_loss(loss, tokens, num_items_in_batch)
        return (loss, {"values": tokens.values, "mask": tokens.mask}) if return_outputs else loss

    def _targets_of(self, inputs: dict[str, Any], tokens: TokenValues, rewards_NTH: torch.Tensor) -> torch.Tensor:
        """
        TD(lambda) targets, with the values before the first update on this batch; in evaluation, the returns.

        With TD(lambda) targets the loss measures how consistent the values are; with returns, how accurate.
        """
        key = ",".join(map(str, inputs["row_index"].tolist()))
        if self.model.training and key in self._targets:
            return self._targets[key].to(tokens.values.device)
        lam = self.args.lam if self.model.training else 1.0
        values_NTH, mask_NT1 = tokens.values.detach(), tokens.mask[..., None]
        targets_NTH = td_lambda(rewards_NTH, values_NTH, mask_NT1, self.args.gamma, lam)
        if self.model.training and self.args.num_epochs_per_batch > 1:
            self._targets[key] = targets_NTH
        return targets_NTH

    @torch.no_grad()
    def _measure(
        self, tokens: TokenValues, rewards_NTH: torch.Tensor, mask_NTH: torch.Tensor, loss_NTH: torch.Tensor
    ) -> None:
        meters, evaluates = self._meters[self._mode], self._mode == "eval"
        if evaluates:
            meters.add("loss", loss_NTH.sum(), tokens.mask.sum())  # averaged over all tokens
        returns_NTH = discounted_sums(rewards_NTH, self.args.gamma)
        measure_values(meters, self.heads, tokens.values, returns_NTH, mask_NTH, thirds=evaluates)

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        with self.model.hold_adapter():
            return super().training_step(*args, **kwargs)

    # -------------------------------------------------------------------------------------------------- evaluation

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """
        Loss against the returns (as with `lam=1`), explained variance and correlation of the values with the returns,
        on a dataset (by default the constructor's) in any of the formats that training takes.

        With `calibration_rollouts`, also `calibration/r2` and `calibration/correlation`: the value of half a
        completion against the mean reward of continuations sampled from the frozen model.
        """
        return super().evaluate(*args, **kwargs)

    def _before_evaluation(self, dataset: AnyDataset) -> None:
        if self.args.calibration_rollouts:
            self._calibrate(dataset)

    def prediction_step(
        self, model: torch.nn.Module, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: Any = None
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        if not any(inputs["completion_ids"]):
            if not self.rewards or self.policy is None:
                raise DataError(
                    "The eval dataset has prompts but no completions. Add scored completions (`trl-ext sample`), or "
                    "pass it with `reward_funcs` to the constructor, which then loads the language model."
                )
            rollouts = self._sample_evaluation(inputs["rows"])
            inputs["completion_ids"] = [rollout.completion_ids for rollout in rollouts]
            inputs["token_rewards"] = [self._by_head(rollout.rewards, rollout.scores) for rollout in rollouts]
        with torch.no_grad(), self.compute_loss_context_manager():
            loss, outputs = self.compute_loss(model, inputs, return_outputs=True)
        if prediction_loss_only:
            return loss.detach(), None, None
        return loss.detach(), *self._tables(inputs, outputs)

    def _tables(self, inputs: dict[str, Any], outputs: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """What `compute_metrics` gets: the mean value and the reward of each completion, by head if several."""
        heads, config = len(self.heads), self.model.config
        totals = [total_rewards(inputs["token_rewards"], h) for h in range(heads)]
        rewards_NH = torch.tensor(totals, device=self.args.device).T
        values_NH = torch.empty_like(rewards_NH)
        if outputs:
            mask_NT1 = outputs["mask"][..., None]
            values_NH = (outputs["values"].float() * mask_NT1).sum(dim=1) / mask_NT1.sum(dim=1).clamp(min=1)
            values_NH = values_NH * values_NH.new_tensor(config.reward_std) + values_NH.new_tensor(config.reward_mean)
        columns = [range(len(group)) for group in inputs["completion_ids"]]
        tables = [completion_table(table, columns, self._eval_width) for table in (values_NH, rewards_NH)]
        return (tables[0], tables[1]) if heads > 1 else (tables[0][..., 0], tables[1][..., 0])

    def _calibrate(self, dataset: AnyDataset) -> None:
        """Compare values of half completions with the mean reward of their sampled continuations."""
        args, process = self.args, self.accelerator.process_index
        rows = list(dataset.take(args.calibration_states)) if isinstance(dataset, IterableDataset) else list(dataset)
        settings, batch_size = args.generation_settings(), sampling_batch_size(self)
        with titled("calibration"), seeded(args.seed, -1_000_003, process), self._sampling_policy() as policy:
            states = sample_halves(
                policy, self._tokenizer, rows, settings, args.calibration_states, batch_size=batch_size
            )
            states = states[process :: self.accelerator.num_processes]
            settings = replace(settings, num_generations=args.calibration_rollouts)
            groups = roll_out(
                policy, self._tokenizer, states, settings, self.rewards, args.reward_weights,
                batch_size=batch_size, trainer_state=self.state,
            )  # fmt: skip
            values_NH = self._values_at(states)
        measure_calibration(self._meters["eval"], self.heads, values_NH, groups)

    def _values_at(self, halves: list[HalfCompletion]) -> torch.Tensor:
        """Values of half completions, of shape (N, H), in units of the rewards."""
        values, size = [torch.zeros(0, len(self.heads))], sampling_batch_size(self)
        for start in range(0, len(halves), size):
            part = halves[start : start + size]
            prompts = [read_prompt(half.row) for half in part]
            tokens = self.token_values(self.model, prompts, [[half.completion_ids] for half in part])
            last_N = tokens.mask.sum(dim=1) - 1
            values.append(tokens.values[torch.arange(len(part)), last_N].float().cpu())
        values_NH = torch.cat(values)
        config = self.model.config
        return values_NH * torch.tensor(config.reward_std) + torch.tensor(config.reward_mean)

    # ------------------------------------------------------------------------------------------------- checkpoints

    def _save_state(self, folder: Path) -> None:
        if self._targets and self.state.global_step % self.args.num_epochs_per_batch:
            write_tensors(self._targets_file(folder), self._targets)
        if self.accelerator.is_main_process:
            self._reward_statistics.save(folder / "normalization.json")

    def _targets_file(self, folder: Path) -> Path:
        return folder / f"targets_{self.accelerator.process_index}.safetensors"

    def _restore_state(self, folder: Path | None) -> None:
        """Restore the targets of a batch that was being repeated, and the reward statistics."""
        self._targets = {}
        if folder is None:
            return
        if self._targets_file(folder).is_file():
            self._targets = load_file(self._targets_file(folder))
        if (folder / "normalization.json").is_file():
            self._reward_statistics.load(folder / "normalization.json")
            self._record_statistics()


def _check_max_steps(args: VASConfig, dataset: Dataset) -> None:
    """Raise a `ValueError` if `max_steps` needs more rounds than there are, and warn if it ends before the last."""
    epochs, repeats = int(args.num_train_epochs // args.num_iterations), args.num_epochs_per_batch
    per_round = steps_in_epoch(args, len(dataset), repeats) * epochs
    needed, planned = -(-args.max_steps // per_round), args.num_iterations * per_round
    arithmetic = (
        f"a round is {per_round} steps ({len(dataset)} rows, `num_train_epochs` / `num_iterations` = {epochs}, "
        f"`num_epochs_per_batch` {repeats}), so `num_iterations` ({args.num_iterations}) is {planned} steps"
    )
    if needed > args.num_iterations:
        raise ValueError(
            f"`max_steps` ({args.max_steps}) needs {needed} rounds: {arithmetic}. Set `max_steps` to {planned} at "
            "most (-1: all of them), or raise `num_train_epochs`."
        )
    if args.max_steps < planned:
        logger.warning(
            f"`max_steps` ({args.max_steps}) ends the run in round {needed} of {args.num_iterations}: {arithmetic}."
        )


def _range_of(rewards: list[float], head: str) -> list[float]:
    """The lowest and the highest of the rewards that are known."""
    known = [x for x in rewards if not math.isnan(x)]
    if not known or min(known) == max(known):
        raise DataError(
            f"The rewards of the head {head!r} have one value or none, so that there is no distribution to learn: set "
            "`value_range`, or value_head='mean'."
        )
    return [min(known), max(known)]
