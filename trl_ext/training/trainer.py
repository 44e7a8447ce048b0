# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""What trainers do around their method: rows in, rounds, evaluation, metrics, checkpoints."""

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, TypeAlias

import torch
from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging

from trl_ext.data.schema import AnyDataset, column_names
from trl_ext.data.tokenization import TOKENIZED_COLUMNS, check_positions, use_chat_template
from trl_ext.generation.vllm_settings import VLLMSettings
from trl_ext.models.adapters import cast_adapter
from trl_ext.models.load import loading_error
from trl_ext.models.sharding import check_launch
from trl_ext.models.tokenizers import ensure_pad_token, load_tokenizer
from trl_ext.rewards.functions import Reward, load_rewards
from trl_ext.rewards.scoring import check_reward_weights
from trl_ext.seeds import seeded
from trl_ext.upstream import BaseTrainer, get_act_offloading_ctx_manager, global_then_local_main_first

from .checkpoints import begin, check_resumable, last_checkpoint
from .config import ExtConfig
from .engine import Engine
from .meters import Meters
from .nonfinite import LossGuard, check_rewards
from .rollouts import Round, measure_round, show_tables
from .rounds import Rounds


logger = logging.get_logger(__name__)

EvalDataset: TypeAlias = AnyDataset | DatasetDict | IterableDatasetDict | dict[str, AnyDataset]


class ExtTrainer(BaseTrainer):
    """
    Base of a method's trainer.

    A subclass has `_config_class`, `_tokenize`, `compute_loss` and `prediction_step`. Its constructor calls
    `_check_config` first; before that of transformers it says `_tokenizer`, `rewards`, `_raw_columns` and `_samples`,
    after it `_rounds`, if it has such, and calls `_begin_metrics`.
    """

    args: ExtConfig
    _config_class: ClassVar[type[ExtConfig]] = ExtConfig  # what `args` must be, and is by default
    _row_columns: ClassVar[tuple[str, ...]] = ()  # of tokenised rows, besides `TOKENIZED_COLUMNS`
    _tokenizer: PreTrainedTokenizerBase
    _rounds: Rounds | None = None
    engine: Engine | None = None  # what draws from the model in training
    rewards: list[Reward]
    _raw_columns: set[str]  # of the data set, where reward functions may ask for them
    _samples = False  # whether training draws completions
    _context = 0  # positions that the models have which read rows (`0`: not known, or a method's own to check)
    _dropped_rows: int | None = None
    _train_prefix = ""  # of the names of metrics in training

    def _send_telemetry(self) -> None:
        """Runs of a third party's trainer are not TRL's to count."""

    def end(self) -> None:
        """See [`~transformers.Trainer.end`]; before it, vLLM is let go, which uses the group that it destroys."""
        if self.engine is not None:
            self.engine.close()
        super().end()

    # ------------------------------------------------------------------------------------------------ preparation

    @classmethod
    def _check_config(cls, args: Any) -> None:
        """Raise a `TypeError` for the config of another trainer: settings of the same name may mean something else."""
        if not isinstance(args, cls._config_class):
            raise TypeError(
                f"`args` of `{cls.__name__}` must be a `{cls._config_class.__name__}`, got `{type(args).__name__}`."
            )

    @staticmethod
    def _check_train_dataset(dataset: Any, args: ExtConfig) -> None:
        if not isinstance(dataset, Dataset | IterableDataset):
            raise TypeError(
                "`train_dataset` is required and must be a `Dataset` or `IterableDataset`, got "
                f"`{type(dataset).__name__}`."
            )
        if isinstance(dataset, IterableDataset):
            args.accelerator_config.dispatch_batches = False  # ragged lists cannot be concatenated across processes

    @classmethod
    def _load_tokenizer(cls, name: str, model: Any, args: ExtConfig, processing_class: Any) -> PreTrainedTokenizerBase:
        if processing_class is None:
            kwargs = args.model_init_kwargs if isinstance(args.model_init_kwargs, dict) else {}
            revision = kwargs.get("revision") if isinstance(model, str) else None
            try:
                processing_class = load_tokenizer(name, revision=revision, trust_remote_code=args.trust_remote_code)
            except OSError as error:
                raise loading_error("tokenizer of the model", name, error) from error
        if not isinstance(processing_class, PreTrainedTokenizerBase):
            raise TypeError(
                f"`processing_class` must be a tokenizer, got `{type(processing_class).__name__}`: {cls._name} is for "
                "language models; rows with images are not supported."
            )
        ensure_pad_token(processing_class)
        if args.chat_template_path:
            use_chat_template(processing_class, args.chat_template_path)
        return processing_class

    @staticmethod
    def _load_rewards(reward_funcs: Any, processing_classes: Any, args: ExtConfig) -> list[Reward]:
        kwargs: dict[str, Any] = {"device": args.device, "trust_remote_code": args.trust_remote_code}
        rewards = load_rewards(reward_funcs, processing_classes, **kwargs) if reward_funcs else []
        check_reward_weights(args.reward_weights or None, [reward.name for reward in rewards])
        return rewards

    def _tokenize(self, dataset: AnyDataset, args: Any, name: str) -> tuple[AnyDataset, int]:
        """The rows of the data set called `name` as the collator takes them, and how many did not fit."""
        raise NotImplementedError

    def _longest_row(self, args: Any) -> int:
        """Most tokens of a row (`0`: no limit)."""
        return int(args.max_length)

    def _prepare_dataset(self, dataset: AnyDataset, args: Any, name: str) -> AnyDataset:
        with global_then_local_main_first():
            dataset, dropped = self._tokenize(dataset, args, name)
        if dropped:
            logger.warning(
                f"{dropped} rows of the {name} data set were dropped: their prompt alone fills max_length="
                f"{self._longest_row(args)}."
            )
        if isinstance(dataset, Dataset) and self._dropped_rows is None:
            self._dropped_rows = dropped  # of the train set, which comes first
        return dataset

    def _prepare_eval_dataset(self, dataset: EvalDataset | None, args: Any) -> Any:
        if dataset is None:
            return None
        if isinstance(dataset, dict):
            return {name: self._prepare_dataset(part, args, name) for name, part in dataset.items()}
        return self._prepare_dataset(dataset, args, "eval")

    def _check_context(self, train: AnyDataset, evals: Any, args: ExtConfig, context: int) -> tuple[AnyDataset, Any]:
        """Both with a `DataError` for a row longer than the model's positions, which would fail in a deep layer."""
        self._context = context
        train = self._check_context_length(train, args, "train", samples=self._samples)
        if isinstance(evals, dict):
            return train, {
                name: self._check_context_length(part, args, f"eval {name!r}") for name, part in evals.items()
            }
        return train, evals if evals is None else self._check_context_length(evals, args, "eval")

    def _check_context_length(self, dataset: AnyDataset, args: Any, name: str, *, samples: bool = False) -> AnyDataset:
        """
        The same for one tokenised data set; a stream's rows are looked at when they come.

        Args:
            dataset ([`~datasets.Dataset`] or [`~datasets.IterableDataset`]): Its rows.
            args ([`~trl_ext.training.config.ExtConfig`]): The trainer's config.
            name (`str`): What messages call it.
            samples (`bool`, *optional*, defaults to `False`): Whether completions are drawn for rows that have some.
        """
        drawn = args.max_completion_length if samples or "completion_ids" not in column_names(dataset) else 0
        drawn_context = self._context_of_draws(args) if drawn else 0
        if drawn_context == self._context:
            drawn_context = 0  # the model's own is checked in any case
        shortest = min(filter(None, [self._context, drawn_context]), default=0)
        if not shortest:
            return dataset
        # Most runs set lengths with which no row can be too long: millions of rows need not be read to know.
        limit = self._longest_row(args)
        if not limit or limit + drawn > shortest:
            return check_positions(dataset, self._context, name=name, drawn=drawn, drawn_context=drawn_context)
        return dataset

    def _context_of_draws(self, args: Any) -> int:
        """Positions that what draws has, which may be fewer than the model's."""
        return args.vllm_context(self._context) if isinstance(args, VLLMSettings) else self._context

    def _set_signature_columns_if_needed(self) -> None:
        # Reward functions are given the data set's other columns; preference rows became `prompt` and `completions`.
        extra = self._raw_columns | {"prompt", "completions"} if self._raw_columns else set()
        extra |= set(self._row_columns)
        self._signature_columns = [*TOKENIZED_COLUMNS, *sorted(extra - set(TOKENIZED_COLUMNS))]

    def _begin_metrics(self) -> None:
        check_launch(self)
        offloads = self.args.activation_offloading
        self._guard = LossGuard(self, self.args.nan_loss)
        self.add_callback(self._guard)
        self._offload = get_act_offloading_ctx_manager(model=self.model) if offloads else contextlib.nullcontext()
        self._meters = {"train": Meters(), "eval": Meters()}
        self._eval_prefix, self._eval_batches = "eval", 0
        self._eval_tables: list[dict[str, list[Any]]] = []
        self._num_tokens = 0  # read by this process and not counted yet
        self.model.add_model_tags(self._tag_names)

    # --------------------------------------------------------------------------------------------------- metrics

    def _show_round(self, sampled: Round, mode: str) -> None:
        """Log what a round of sampling came to, and print completions where that is asked for."""
        check_rewards(sampled.nans, len(sampled.is_sampled), self.args.nan_rewards, self.state.global_step)
        if sampled.nans:
            self._meters[mode].add("rewards/nan_ratio", len(sampled.nans), len(sampled.is_sampled))
        measure_round(sampled, self.rewards, self._meters[mode])
        if sampled.is_sampled and not any(rollout.scores for rollout in sampled.rollouts.values()):
            logger.warning(
                f"Step {self.state.global_step}: none of the {len(sampled.is_sampled)} completions has a score, "
                "so this step has no effect: the reward functions returned None or NaN."
            )
        if self.args.log_completions and mode == "train":
            show_tables([sampled.table], self.accelerator, self.args, self.state.global_step, mode)
        elif self.args.log_completions:
            self._eval_tables.append(sampled.table)

    def _figures(self, mode: str) -> dict[str, float]:
        """Metrics of a method's own, since the last log, that are no means."""
        return {}

    def _totals(self) -> dict[str, float]:
        """Metrics of training that count from its start."""
        self._count_tokens()
        totals = {"num_tokens": float(self.state.num_input_tokens_seen)}
        if self.args.nan_loss == "skip":
            totals["skipped_steps"] = float(self._guard.skipped)
        return totals if self._dropped_rows is None else totals | {"dropped_rows": float(self._dropped_rows)}

    def _count_tokens(self) -> None:
        """Put what all processes read into the trainer's state, which goes into checkpoints."""
        tokens = torch.tensor(self._num_tokens, device=self.accelerator.device)
        self.state.num_input_tokens_seen += int(self.accelerator.reduce(tokens, reduction="sum"))
        self._num_tokens = 0

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        mode = "train" if self.model.training else "eval"
        metrics = self._meters[mode].pop(self.accelerator) | self._figures(mode)
        if mode == "eval":
            metrics = {f"{self._eval_prefix}_{name}": value for name, value in metrics.items()}
        elif metrics:
            metrics = {f"{self._train_prefix}{name}": value for name, value in (metrics | self._totals()).items()}
        logs.update(metrics)
        super().log(logs, start_time)

    # ----------------------------------------------------------------------------------------------- a step's parts

    def _chance(self, mode: str) -> contextlib.AbstractContextManager[None]:
        """Where the draws of a round begin: every evaluation has the same ones, and every batch of it others."""
        step = self.state.global_step if mode == "train" else -1 - self._eval_batches
        return seeded(self.args.seed, step, self.accelerator.process_index)

    def _mean(self, total: torch.Tensor, own: int, count: torch.Tensor | int | None) -> torch.Tensor:
        """
        The mean of a step's losses, as far as this batch goes.

        Args:
            total (`torch.Tensor`): Sum of this batch's.
            own (`int`): How many it has.
            count (`int` or `torch.Tensor`, *optional*): How many all micro-batches and processes of the step have.
                Dividing by them, neither accumulation nor unequal batches change the gradient.
        """
        if count is None:
            return total / max(own, 1)
        # Distributed wrappers average gradients over processes; the sum is what the count belongs to.
        return total / count * self.accelerator.num_processes

    def _zero_loss(self, read: Callable[[Any, Any], torch.Tensor], inputs: dict[str, Any]) -> torch.Tensor:
        """
        The loss of a batch whose completions no reward function could score: every process has to run the model.

        Args:
            read (`Callable`): From prompts and completions to a tensor that the model's weights are in.
            inputs (`dict`): The batch.
        """
        return read(inputs["prompt_ids"][:1], [[[self._tokenizer.pad_token_id]]]).sum() * 0.0

    def training_step(self, model: torch.nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        with self._offload:
            loss = super().training_step(model, inputs, *args, **kwargs)
        return self._guard.check(loss, inputs, self.state.global_step + 1)

    # ------------------------------------------------------------------------------------------------- evaluation

    def evaluate(
        self,
        eval_dataset: Any = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """
        Loss and metrics on `eval_dataset` (by default the constructor's), or on each of several.

        Its rows may have any of the forms that training takes.
        """
        if eval_dataset is None or isinstance(eval_dataset, str):
            parts = self.eval_dataset if eval_dataset is None else self.eval_dataset[eval_dataset]
        else:
            parts = eval_dataset
        if isinstance(parts, dict):
            metrics: dict[str, float] = {}
            for name, part in parts.items():
                metrics |= self._evaluate_one(part, ignore_keys, f"{metric_key_prefix}_{name}")
            return metrics
        return self._evaluate_one(parts, ignore_keys, metric_key_prefix)

    def _before_evaluation(self, dataset: Any) -> None:
        """What a method does with the tokenised rows before they are evaluated."""

    def _evaluate_one(self, dataset: Any, ignore_keys: list[str] | None, prefix: str) -> dict[str, float]:
        if dataset is not None and "prompt_ids" not in column_names(dataset):
            dataset = self._prepare_dataset(dataset, self.args, "eval")
            dataset = self._check_context_length(dataset, self.args, "eval")
        self._eval_prefix, self._eval_batches = prefix, 0
        if dataset is not None:
            self._before_evaluation(dataset)
        metrics = super().evaluate(dataset, ignore_keys, prefix)
        if self.args.log_completions:
            tables, self._eval_tables = self._eval_tables, []
            show_tables(tables, self.accelerator, self.args, self.state.global_step, prefix)
        return metrics

    # ------------------------------------------------------------------------------------------------ checkpoints

    def _restore_state(self, folder: Path | None) -> None:
        """What a method takes back from a checkpoint's folder; without one it starts afresh."""

    def _save_state(self, folder: Path) -> None:
        """What a method adds to a checkpoint."""

    def train(self, resume_from_checkpoint: str | os.PathLike | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        path = resume_from_checkpoint
        if path is True:
            path = last_checkpoint(self.args.output_dir) or True  # transformers says that there is none
        elif isinstance(path, os.PathLike):
            path = os.fspath(path)
        if isinstance(path, str) and self._samples and self.args.ignore_data_skip:
            raise ValueError(
                "`ignore_data_skip` cannot resume sampling: a round belongs to the rows it was drawn for."
            )
        folder = Path(path) if isinstance(path, str) else None
        if folder is not None:
            check_resumable(folder)
        if self._samples and self._rounds is not None:
            self._rounds.restore(folder)
        self._restore_state(folder)
        return super().train(path, *args, **kwargs)

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        name = self.args.hub_model_id.split("/")[-1] if self.args.hub_model_id else Path(self.args.output_dir).name
        self.create_model_card(model_name=name)
        folder = Path(self._get_output_dir(trial=trial)) / f"checkpoint-{self.state.global_step}"
        if self.args.should_save:
            begin(folder)
        try:
            self._count_tokens()
            # Before everything else, so that no checkpoint that is otherwise whole lacks its round.
            if self._samples and self._rounds is not None:
                self._rounds.save(folder)
            self._save_state(folder)
            self.accelerator.wait_for_everyone()  # what makes it whole is the main process's to write, and the last
            super()._save_checkpoint(model, trial)
        except Exception as error:
            newest = last_checkpoint(folder.parent)
            error.add_note(
                f"The checkpoint {folder} was not written to its end (is the disk full?). "
                + (f"A run can be resumed from {newest}." if newest else "There is none before it.")
            )
            raise

    @property
    def _loads_parts(self) -> bool:
        """Whether a checkpoint of the model is put on a backbone that it does not hold."""
        return getattr(self.model, "saves_parts", False) and not (self.is_deepspeed_enabled or self.is_fsdp_enabled)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if self._loads_parts:
            self.model.load_adapter_and_head(resume_from_checkpoint)
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            cast_adapter(self.model)

    def _load_best_model(self) -> None:
        if self._loads_parts:
            self.model.load_adapter_and_head(self.state.best_model_checkpoint)
        else:
            super()._load_best_model()
            cast_adapter(self.model)
