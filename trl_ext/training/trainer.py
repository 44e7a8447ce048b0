# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Base class of the trainers of all methods: dataset preparation, evaluation, metrics and checkpointing."""

import contextlib
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, Self, TypeAlias

import torch
from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict
from torch.utils.data import DataLoader
from transformers import EvalPrediction, PreTrainedTokenizerBase, ProgressCallback, TrainerCallback, set_seed
from transformers.trainer_utils import PredictionOutput
from transformers.utils import logging

from trl_ext.atomic_files import make_folder, write_text
from trl_ext.cards import quoted
from trl_ext.data.chat_template import unstopped_turn, use_chat_template
from trl_ext.data.schema import AnyDataset, check_dataset, column_names, first_row, is_conversational
from trl_ext.data.scored_rows import form_of, require_scores, to_scored_rows
from trl_ext.data.token_ids import check_token_ids_of_rows
from trl_ext.data.tokenization import TOKENIZED_COLUMNS, check_positions, is_tokenized, prepare_dataset
from trl_ext.generation_settings import eos_token_ids, stop_at_eos_token
from trl_ext.logprobs.token_logps import TokenLogps
from trl_ext.models.adapters import cast_adapter, check_trainable
from trl_ext.models.load import hub_arguments, loading_error
from trl_ext.models.properties import trains_weights_of
from trl_ext.models.sharding import check_launch
from trl_ext.models.tokenizers import ensure_pad_token, load_tokenizer, use_eos_token
from trl_ext.packages import check_packages
from trl_ext.progress import library_progress, shown
from trl_ext.rewards.classifiers import ClassifierReward
from trl_ext.rewards.functions import Reward, check_reward_columns, check_reward_prompts, load_rewards
from trl_ext.rewards.kept_scores import KeptScores
from trl_ext.rewards.scoring import check_reward_weights
from trl_ext.seeds import seeded
from trl_ext.settings_file import RunSettings
from trl_ext.upstream import (
    BaseTrainer,
    get_act_offloading_ctx_manager,
    get_config_model_id,
    global_then_local_main_first,
)

from .best_metric import check_best_metric
from .callbacks import OnTrainBegin
from .checkpoints import begin, check_resumable, last_checkpoint, saving, training_in
from .config import ExtConfig
from .meters import Meters
from .model_card import TrainedModel, language_model_card, model_card, rows_and_columns
from .model_card import dataset_name as dataset_of
from .nonfinite import LossGuard, check_rewards
from .predictions import on_tables, with_nan
from .progress import TrainingProgress
from .rollouts import Rollout, Round, measure_round, show_tables
from .rounds import RolloutSchedule
from .row_order import RowOrder, row_lengths
from .run_files import RunFiles
from .run_record import RunRecord, check_continues
from .run_settings import Arguments
from .summary import Run, SummaryCallback, common_lines
from .trl_settings import REFUSED_ARGUMENTS, check_arguments, unused_without_generation


logger = logging.get_logger(__name__)

EvalDataset: TypeAlias = AnyDataset | DatasetDict | IterableDatasetDict | dict[str, AnyDataset]


class ExtTrainer(BaseTrainer):
    """
    Base class of the trainers of all methods.

    A subclass has `_config_class`, `_name`, `compute_loss` and `prediction_step`, and `_tokenize` if it reads more of
    a row than prompt and completions. Its constructor calls `_config_for`, `_setup` and `_prepare_datasets`, loads its
    model, and passes that to the constructor of this class. A subclass that generates completions in training also
    sets `_samples`, has `_sample_round`, and sets `_rounds` if it follows their schedule.

    Where they differ for a method, it overrides what the summary before the first step says (`_summary`), the models
    and completions that the estimate of memory counts (`_models_in_memory`, `_completions_in_step`), and what the
    summary and the progress bar know of its rounds (`_completions_per_row`, `_rounds_in_dataset`, `_round_of`).

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]): The model to be trained.
        args ([`~trl_ext.training.config.ExtConfig`]): The config that `_config_for` returned.
        compute_metrics (`Callable`, *optional*): Called at evaluation with tables of a row per prompt and a column per
            completion, NaN where there is none; see [`~trl_ext.training.predictions.completion_table`].
        kwargs: Further arguments of [`~transformers.Trainer`]. The tokenizer is the one that `_setup` loaded.
    """

    args: ExtConfig
    _config_class: ClassVar[type[ExtConfig]] = ExtConfig  # the class of `args`, and of its default
    _refused_arguments: ClassVar[Mapping[str, str]] = REFUSED_ARGUMENTS  # of TRL's trainers, with the reasons
    _row_columns: ClassVar[tuple[str, ...]] = ()  # columns of tokenized rows besides `TOKENIZED_COLUMNS`
    _tokenizer: PreTrainedTokenizerBase
    _rounds: RolloutSchedule | None = None
    rewards: list[Reward]
    _arguments: Arguments  # of its constructor, as settings of the command
    _data_description: str  # of the train dataset as it was given
    _raw_columns: set[str]  # columns of the datasets, where reward functions may ask for them
    _signature_columns: list[str] | None
    _samples = False  # whether training generates completions
    _embeddings = 0  # token ids that the models have embeddings for (`0`: unknown, or checked by the method)
    _context = 0  # context length of the models that read rows (`0`: unknown, or checked by the method)
    _dropped_rows: int | None = None
    _form = ""  # name of the form in which the train dataset was read
    _own_columns: tuple[str, ...] = ()  # its columns, before they were converted
    _train_prefix = ""  # prefix of the names of training metrics
    _phase = "training"  # what the summary before the first step is about
    _said_same_rewards = False
    router_aux_loss_coef = 0.0  # coefficient of the load balancing loss of a mixture of experts

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        # Python's own error would name the first unknown argument only, and no reason.
        check_arguments(cls, kwargs, cls._refused_arguments)
        trainer = super().__new__(cls)
        trainer._arguments = Arguments(cls, args, kwargs)
        return trainer

    def __init__(
        self,
        model: Any,
        args: ExtConfig,
        *,
        compute_metrics: Callable[[EvalPrediction], dict[str, float]] | None = None,
        **kwargs: Any,
    ) -> None:
        kwargs["compute_metrics"] = on_tables(compute_metrics) if compute_metrics else None
        if args.should_save:
            make_folder(Path(args.output_dir), "output_dir")
        super().__init__(model=model, args=args, processing_class=self._tokenizer, **kwargs)
        check_launch(self)
        self._check_reward_models()
        kwargs_of_checkpointing: Any = args.gradient_checkpointing_kwargs or {}
        if self.aux_loss_enabled and args.gradient_checkpointing and kwargs_of_checkpointing.get("use_reentrant"):
            raise ValueError(
                "With `use_reentrant` in `gradient_checkpointing_kwargs` the load balancing loss of a mixture of "
                "experts has no gradient: remove it, or set `router_aux_loss_coef: 0`."
            )
        self._own_callbacks: list[TrainerCallback] = []  # those that another trainer of the model must not have
        self._guard = LossGuard(self, self.args.nan_loss)
        self._add_own_callback(self._guard)
        self._checkpoint: Path | None = None  # that `train` resumes from
        self._add_own_callback(OnTrainBegin(self._begin_training))
        self._add_own_callback(SummaryCallback(self, self._summary))
        self._progress = self._replace_progress_bar()
        offloads = self.args.activation_offloading
        self._offload = get_act_offloading_ctx_manager(model=self.model) if offloads else contextlib.nullcontext()
        self._meters = {"train": Meters(), "eval": Meters()}
        self._eval_prefix, self._eval_batches = "eval", 0
        self._eval_width = 0  # most completions of a prompt in the dataset that is being evaluated
        self._eval_tables: list[dict[str, Any]] = []
        self._num_tokens = 0  # read by this process and not yet counted in the trainer's state
        self.model.add_model_tags(self._tag_names)
        self._files = RunFiles(self)
        self.add_callback(self._files)

    @property
    def settings(self) -> RunSettings:
        """The settings that repeat the run, as `config.yaml` in `output_dir` has them."""
        return self._files.run_settings()

    @settings.setter
    def settings(self, settings: RunSettings) -> None:
        self._files.settings = settings

    def _add_own_callback(self, callback: TrainerCallback) -> None:
        self._own_callbacks.append(callback)
        self.add_callback(callback)

    def _replace_progress_bar(self) -> TrainingProgress:
        """Put [`TrainingProgress`] in the place of transformers' bar. Notebooks and `disable_tqdm` have none."""
        found = TrainingProgress(self._round_of)
        for callback in list(self.callback_handler.callbacks):
            if type(callback) is ProgressCallback:
                self.remove_callback(callback)
                self._add_own_callback(found)
        return found

    @contextlib.contextmanager
    def _showing_progress(self) -> Iterator[None]:
        """Context in which long phases are shown, unless `disable_tqdm` is set. An error removes the bars."""
        try:
            with shown(not self.args.disable_tqdm):
                yield
        except BaseException:
            self._progress.close()
            raise

    @property
    def num_generations(self) -> int:
        """Number of completions that are generated for a prompt."""
        return self.args.completions_per_prompt()

    @property
    def num_generations_eval(self) -> int:
        """The same in evaluations."""
        return self.args.completions_per_prompt("eval")

    def _send_telemetry(self) -> None:
        """Does nothing: TRL counts runs of its own trainers here."""

    # ------------------------------------------------------------------------------------------------ preparation

    @classmethod
    def _config_for(cls, model: Any, args: Any) -> Any:
        """
        The config of a trainer: `args`, or the default one, whose output directory is named after the model.

        Raises:
            `TypeError`: `args` is the config of another trainer, where settings of the same name may mean something
                else.
            `ValueError`: It asks for batches to be sent between processes, or for packages that are not installed.
        """
        if args is None:
            return cls._config_class(f"{_name_of(model).rstrip('/').split('/')[-1]}-{cls._name}")
        if not isinstance(args, cls._config_class):
            raise TypeError(
                f"`args` of `{cls.__name__}` must be a `{cls._config_class.__name__}`, got `{type(args).__name__}`."
            )
        if args.accelerator_config.dispatch_batches:
            raise ValueError(
                "Iterable datasets require `dispatch_batches=False`, and all others have it: batches are lists of "
                "different lengths, which accelerate cannot send to other processes. Leave it out of "
                "`accelerator_config`."
            )
        check_packages(args)
        return args

    def _setup(
        self,
        model: Any,
        args: ExtConfig,
        train_dataset: Any,
        processing_class: Any,
        reward_funcs: Any,
        reward_processing_classes: Any,
    ) -> AnyDataset:
        """
        Check the arguments that every trainer has, set the seed, and load the tokenizer and the reward functions.

        Returns:
            The train dataset in the row schema.

        Raises:
            `TypeError`, `ValueError`: One of them cannot be used.
        """
        if train_dataset is None:
            raise ValueError("`train_dataset` is required.")
        check_dataset(train_dataset, "train_dataset")
        args.accelerator_config.dispatch_batches = False  # also for a stream that is evaluated only
        if isinstance(train_dataset, IterableDataset):
            args.dataloader_num_workers = _workers_for(train_dataset, args)
        self._language_model = _name_of(model)
        set_seed(args.seed)  # new weights, such as those of an adapter, are random
        self._tokenizer = self._load_tokenizer(model, args, processing_class)
        self.rewards = self._load_rewards(reward_funcs, reward_processing_classes, args)
        check_reward_weights(args.reward_weights or None, self.reward_func_names)
        self._raw_columns = set()
        self._data_description = rows_and_columns(train_dataset)
        return self._as_scored_rows(train_dataset, args, "train")

    def _as_scored_rows(self, dataset: AnyDataset, args: ExtConfig, name: str) -> AnyDataset:
        """A dataset in the row schema, whatever form it has. Only the main process of a node converts it."""
        with shown(not args.disable_tqdm), global_then_local_main_first():
            rows = to_scored_rows(
                dataset,
                name,
                columns=args.columns,
                dataset_format=args.dataset_format,
                keep_columns=bool(self.rewards),  # a reward function may compare with the dataset's answer
                num_proc=args.dataset_num_proc,
            )
            if name == "train":
                self._own_columns = tuple(column_names(dataset))
                self._form = form_of(dataset, name, columns=args.columns, dataset_format=args.dataset_format)
            return require_scores(rows, name, column_names(dataset), rewarded=bool(self.rewards))

    def _load_rewards(self, reward_funcs: Any, processing_classes: Any, args: ExtConfig) -> list[Reward]:
        return load_rewards(
            reward_funcs or [],
            processing_classes,
            settings=args,
            policy_tokenizer=self._tokenizer,
            device=args.device,
            trust_remote_code=args.trust_remote_code,
        )

    def _check_reward_models(self) -> None:
        """Raise a `ValueError` if training would change a reward model."""
        for reward in self.rewards:
            if isinstance(reward.func, ClassifierReward) and trains_weights_of(self.model, reward.func.model):
                raise ValueError(
                    f"The reward model '{reward.name}' has weights that are trained here, so that its rewards would "
                    "change with every step: pass a copy of it (`copy.deepcopy(model)`), or load it again."
                )

    # Attributes of TRL's trainers, under their names.

    @property
    def reward_funcs(self) -> list[Any]:
        """The reward functions and models."""
        return [r.func.model if isinstance(r.func, ClassifierReward) else r.func for r in self.rewards]

    @property
    def reward_func_names(self) -> list[str]:
        """Their names in logs and tables."""
        return [reward.name for reward in self.rewards]

    @property
    def reward_processing_classes(self) -> list[PreTrainedTokenizerBase | None]:
        """The tokenizer of each reward model; `None` for a function."""
        return [reward.processing_class for reward in self.rewards]

    @property
    def reward_weights(self) -> torch.Tensor:
        """The weight of each reward, of shape `(number of rewards,)`."""
        return torch.tensor(check_reward_weights(self.args.reward_weights or None, self.reward_func_names))

    @property
    def _scoring(self) -> dict[str, Any]:
        """Arguments of [`score_round`]: what reward functions get, and what happens to the scores if one fails."""
        file = Path(self.args.output_dir) / f"unfinished_scores_{self.accelerator.process_index}.json"
        return {"trainer_state": self.state, "kept": KeptScores(file)}

    @classmethod
    def _load_tokenizer(cls, model: Any, args: ExtConfig, processing_class: Any) -> PreTrainedTokenizerBase:
        if processing_class is None:
            name = _name_of(model)
            if not name:
                raise ValueError(
                    "The model was not loaded from a folder or the Hub, so its tokenizer is not known: pass it as "
                    "`processing_class`."
                )
            kwargs = args.model_init_kwargs if isinstance(args.model_init_kwargs, dict) else {}
            where = hub_arguments(kwargs) if isinstance(model, str) else {}
            try:
                processing_class = load_tokenizer(name, trust_remote_code=args.trust_remote_code, **where)
            except OSError as error:
                raise loading_error("tokenizer of the model", name, error) from error
        if not isinstance(processing_class, PreTrainedTokenizerBase):
            raise TypeError(
                f"`processing_class` must be a tokenizer, got `{type(processing_class).__name__}`: {cls._name} is for "
                "language models; rows with images are not supported."
            )
        if args.pad_token is not None:
            if processing_class.convert_tokens_to_ids(args.pad_token) in (None, processing_class.unk_token_id):
                raise ValueError(f"`pad_token`: {args.pad_token!r} is no token of the tokenizer.")
            processing_class.pad_token = args.pad_token
        if args.eos_token:
            use_eos_token(processing_class, args.eos_token)
        ensure_pad_token(processing_class)
        if args.chat_template_path:
            use_chat_template(processing_class, args.chat_template_path)
        return processing_class

    def _check_end_of_answers(self, model: Any, args: ExtConfig, dataset: AnyDataset) -> None:
        """
        Let generation with `model` stop at `eos_token`, or warn if it would not stop where the chat template does.

        Args:
            model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]): The language model.
            args ([`~trl_ext.training.config.ExtConfig`]): The trainer's config.
            dataset ([`~datasets.Dataset`] or [`~datasets.IterableDataset`]): The training rows.
        """
        if args.eos_token:
            stop_at_eos_token(model, self._tokenizer)
        if not is_conversational(first_row(dataset, "train")):
            return
        warning = unstopped_turn(self._tokenizer, eos_token_ids(model, self._tokenizer))
        if warning:
            logger.warning(warning)

    def _tokenize(self, dataset: AnyDataset, args: Any, name: str) -> tuple[AnyDataset, int]:
        """
        The rows of the dataset called `name` in the form that the collator takes, and how many were too long: by
        default those of [`~trl_ext.data.tokenization.prepare_dataset`].
        """
        return prepare_dataset(
            dataset,
            self._tokenizer,
            name=name,
            max_length=self._longest_row(args),
            num_proc=args.dataset_num_proc,
            chat_template_kwargs=args.chat_template_kwargs,
        )

    def _longest_row(self, args: Any) -> int:
        """Maximum number of tokens in a row (`0`: no limit)."""
        return int(args.max_length)

    def _prepare_datasets(
        self, train_dataset: AnyDataset, eval_dataset: EvalDataset | None, args: Any
    ) -> tuple[AnyDataset, Any]:
        """Both datasets, checked and tokenized. The train dataset has the form that [`_setup`] returned."""
        train_dataset = self._prepare_dataset(train_dataset, args, "train")
        if isinstance(eval_dataset, dict):
            for name, part in eval_dataset.items():
                check_dataset(part, f"eval_dataset[{name!r}]")
            eval_dataset = {
                name: self._prepare_dataset(self._as_scored_rows(part, args, name), args, name)
                for name, part in eval_dataset.items()
            }
        elif eval_dataset is not None:
            check_dataset(eval_dataset, "eval_dataset")
            eval_dataset = self._prepare_dataset(self._as_scored_rows(eval_dataset, args, "eval"), args, "eval")
        check_reward_columns(self.rewards, self._raw_columns)
        return train_dataset, eval_dataset

    def _prepare_dataset(self, dataset: AnyDataset, args: Any, name: str) -> AnyDataset:
        if self.rewards:
            self._raw_columns |= set(column_names(dataset))
            self._signature_columns = None  # they are found again
            check_reward_prompts(self.rewards, first_row(dataset, name).get("prompt"))
        with (
            shown(not args.disable_tqdm),
            library_progress(f"tokenizing the {name} dataset"),
            global_then_local_main_first(),
        ):
            dataset, dropped = self._tokenize(dataset, args, name)
        self._report_dropped(dropped, args, name)
        if isinstance(dataset, Dataset) and self._dropped_rows is None:
            self._dropped_rows = dropped  # of the training dataset, which comes first
        return dataset

    def _report_dropped(self, dropped: int, args: Any, name: str) -> None:
        if dropped:
            logger.warning(
                f"Dropped from the {name} dataset: {dropped} {'row' if dropped == 1 else 'rows'} whose prompt alone "
                f"fills max_length={self._longest_row(args)}."
            )

    def _check_context_lengths(
        self, train: AnyDataset, evals: Any, args: ExtConfig, context: int
    ) -> tuple[AnyDataset, Any]:
        """
        Both datasets, where a row that is longer than the model's context is a `DataError`.

        Without this check the error would come from deep inside the model.
        """
        self._context = context
        if not self._samples and not self.rewards and (unused := unused_without_generation(args)):
            logger.warning(
                f"Ignored: `{'`, `'.join(unused)}`. No completions are generated, as the dataset has them and there "
                "are no `reward_funcs`."
            )
        train = self._check_context_length(train, args, "train", samples=self._samples)
        if isinstance(evals, dict):
            return train, {
                name: self._check_context_length(part, args, f"eval {name!r}") for name, part in evals.items()
            }
        return train, evals if evals is None else self._check_context_length(evals, args, "eval")

    def _check_context_length(self, dataset: AnyDataset, args: Any, name: str, *, samples: bool = False) -> AnyDataset:
        """
        The same for one tokenized dataset; the rows of a stream are checked as they come.

        Args:
            dataset ([`~datasets.Dataset`] or [`~datasets.IterableDataset`]): Tokenized rows.
            args ([`~trl_ext.training.config.ExtConfig`]): The trainer's config.
            name (`str`): Name of the dataset in error messages.
            samples (`bool`, *optional*, defaults to `False`): Whether completions are generated even for rows that
                have some.
        """
        dataset = check_token_ids_of_rows(dataset, self._embeddings, self._tokenizer, name=name)
        generated = args.max_completion_length if samples or "completion_ids" not in column_names(dataset) else 0
        generation_context = self._generation_context(args) if generated else 0
        if generation_context == self._context:
            generation_context = 0  # the model's own context is checked in any case
        shortest = min(filter(None, [self._context, generation_context]), default=0)
        if not shortest:
            return dataset
        # With the lengths that most runs set, no row can be too long, and millions of rows need not be read.
        limit = self._longest_row(args)
        if not limit or limit + generated > shortest:
            return check_positions(
                dataset, self._context, name=name, max_new_tokens=generated, generation_context=generation_context
            )
        return dataset

    def _generation_context(self, args: Any) -> int:
        """Context length of the generation backend."""
        return self._context

    def _set_signature_columns_if_needed(self) -> None:
        # Reward functions get the other columns of the dataset; preference rows became `prompt` and `completions`.
        # The setting `chat_template_kwargs` is written to the column of this name, for the templates of reward models.
        own = {"prompt", "completions", "chat_template_kwargs"}
        extra = self._raw_columns | own if self._raw_columns else set()
        extra |= {*self._row_columns, self.args.length_column_name}
        self._signature_columns = [*TOKENIZED_COLUMNS, *sorted(extra - set(TOKENIZED_COLUMNS))]

    # ---------------------------------------------------------------------------------------------- order of rows

    def _repeats(self) -> int:
        """How many times each optimizer step occurs with the same rows."""
        return 1

    def _rounds_in_dataset(self) -> int:
        """Number of rounds whose completions the dataset has, so that they are not sampled."""
        return 0

    def _completions_per_row(self) -> int:
        """Number of completions that a round has for a row."""
        return self.args.completions_per_prompt()

    def _models_in_memory(self) -> list[Any]:
        """The language model, then the model that is trained if that is another one: for the estimate of memory."""
        return [self.accelerator.unwrap_model(self.model)]

    def _completions_in_step(self, in_dataset: int) -> int:
        """
        Most completions of a prompt in a training step, for the estimate of memory; 0 if the config has them all.

        Args:
            in_dataset (`int`): Most completions of a row of the training dataset; 0 if it has none, or is a stream.
        """
        return 0 if self._samples else in_dataset

    def _summary(self, run: Run) -> dict[str, str]:
        """
        The lines of the summary before the first step, by their titles; an empty text leaves a line out.

        A method replaces those of [`~trl_ext.training.summary.common_lines`] that are different for it, and adds its
        own.
        """
        return common_lines(self, run)

    def _round_of(self, step: int, steps_per_epoch: int) -> int:
        """
        Number, from 0, of the round of completions that a step trains on; 0 if training generates none.

        Args:
            step (`int`): Number of the optimizer step, from 0.
            steps_per_epoch (`int`): Number of optimizer steps in an epoch.
        """
        if not self._samples:
            return 0
        return step // self._repeats() if self._rounds is None else self._rounds.round_of(step, steps_per_epoch)

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        dataset = self.train_dataset if train_dataset is None else train_dataset
        strategy, repeats = self.args.train_sampling_strategy, self._repeats()
        if not isinstance(dataset, Dataset):
            return super()._get_train_sampler(dataset)
        if strategy == "batch_rebalance" and repeats > 1:
            raise ValueError(
                f"`train_sampling_strategy: batch_rebalance` has no order in which {self._name} could repeat the "
                f"rows of each step {repeats} times: use `group_by_length`, or train on each step once."
            )
        if strategy == "batch_rebalance":
            lengths = row_lengths(dataset, self.args.length_column_name)
            return super()._get_train_sampler(Dataset.from_dict({self.args.length_column_name: lengths}))
        if strategy == "group_by_length" or repeats > 1:
            return RowOrder.of(self, dataset, repeats)
        return super()._get_train_sampler(dataset)

    def _get_eval_sampler(self, eval_dataset: Any) -> Any:
        if self.args.train_sampling_strategy == "group_by_length" and isinstance(eval_dataset, Dataset):
            lengths = row_lengths(eval_dataset, self.args.length_column_name)
            return super()._get_eval_sampler(Dataset.from_dict({self.args.length_column_name: lengths}))
        return super()._get_eval_sampler(eval_dataset)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        named = self.eval_dataset[eval_dataset] if isinstance(eval_dataset, str) else eval_dataset
        with _workers(self.args, self.eval_dataset if named is None else named):
            return super().get_eval_dataloader(eval_dataset)

    def get_test_dataloader(self, test_dataset: Any) -> DataLoader:
        with _workers(self.args, test_dataset):
            return super().get_test_dataloader(test_dataset)

    # --------------------------------------------------------------------------------------------------- sampling

    def _sample_round(self, rows: list[dict[str, Any]], mode: str = "train") -> Round:
        """
        Generate and score completions for tokenized rows with the current model, and log their metrics.

        Args:
            rows (`list[dict]`): Tokenized rows.
            mode (`str`, *optional*, defaults to `"train"`): `"train"` or `"eval"`.
        """
        raise NotImplementedError

    def _sample_evaluation(self, rows: list[dict[str, Any]]) -> list[Rollout]:
        """Generate and score completions for the rows of one batch of an evaluation."""
        numbered = [{**row, "row_index": n} for n, row in enumerate(rows)]  # a stream may have numbered several alike
        rollouts = list(self._sample_round(numbered, "eval").rollouts.values())
        self._eval_batches += 1
        return rollouts

    def _seeded(self, mode: str) -> contextlib.AbstractContextManager[None]:
        """The RNG state of a round: the same in every evaluation, and another for each of its batches."""
        step = self.state.global_step if mode == "train" else -1 - self._eval_batches
        return seeded(self.args.seed, step, self.accelerator.process_index)

    def _log_round(self, sampled: Round, mode: str) -> None:
        """Record the metrics of a round, and print its completions if `log_completions` is set."""
        check_rewards(sampled.nans, len(sampled.is_sampled), self.args.nan_rewards, self.state.global_step)
        if sampled.nans:
            self._meters[mode].add("rewards/nan_ratio", len(sampled.nans), len(sampled.is_sampled))
        measure_round(sampled, self.rewards, self._meters[mode])
        if sampled.is_sampled and not any(rollout.scores for rollout in sampled.rollouts.values()):
            logger.warning(f"Step {self.state.global_step}: {_nothing_to_learn_from(sampled)}")
        if self.args.log_completions and mode == "train":
            show_tables([sampled.shown()], self.accelerator, self.args, self.state.global_step, mode)
        elif self.args.log_completions:
            self._eval_tables.append(sampled.shown())

    # --------------------------------------------------------------------------------------------------- metrics

    @property
    def _mode(self) -> str:
        return "train" if self.model.training else "eval"

    def _measure_tokens(self, tokens: TokenLogps) -> None:
        """Record the entropy and accuracy of the model over the completion tokens of a batch."""
        meters = self._meters[self._mode]
        scored = tokens.completion_index >= 0
        meters.add("entropy", tokens.entropy[scored].sum(), scored.sum())
        meters.add("mean_token_accuracy", tokens.is_top1[scored].sum(), scored.sum())

    def _totals(self) -> dict[str, float]:
        """Metrics that count from the start of training."""
        self._count_tokens()
        totals = {"num_tokens": float(self.state.num_input_tokens_seen)}
        if self.args.nan_loss == "skip":
            totals["skipped_steps"] = float(self._guard.skipped)
        return totals if self._dropped_rows is None else totals | {"dropped_rows": float(self._dropped_rows)}

    def _add_tokens(self, prompts: list[list[int]], completions: list[list[list[int]]]) -> None:
        """Count the tokens of a training batch for `num_tokens`."""
        if self.model.training:
            self._num_tokens += sum(map(len, prompts)) + sum(len(c) for group in completions for c in group)

    def _count_tokens(self) -> None:
        """Add the tokens that all processes have read to the trainer's state, which checkpoints store."""
        self.state.num_input_tokens_seen += self._over_processes(self._num_tokens)
        self._num_tokens = 0

    def _over_processes(self, count: int) -> int:
        """The sum of `count` over all processes."""
        return int(self.accelerator.reduce(torch.tensor(count, device=self.accelerator.device), reduction="sum"))

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        mode = self._mode
        metrics = self._meters[mode].pop(self.accelerator)
        if mode == "eval":
            metrics = {f"{self._eval_prefix}_{name}": value for name, value in metrics.items()}
        elif metrics:
            self._check_spread(metrics)
            metrics |= self._totals()
        logs.update(metrics)
        if self._train_prefix and mode == "train":  # transformers' own metrics too, such as the loss
            logs = {f"{self._train_prefix}{name}": value for name, value in logs.items()}
        super().log(logs, start_time)

    def _check_spread(self, metrics: dict[str, float]) -> None:
        """Warn, once, if all completions since the last log have the same reward."""
        found = {
            reward.name: (metrics[f"rewards/{reward.name}/mean"], metrics[f"rewards/{reward.name}/std"])
            for reward in self.rewards
            if f"rewards/{reward.name}/std" in metrics
        }
        # The deviation is computed from sums of squares, so its rounding error grows with the mean.
        same = all(deviation <= 1e-6 * max(1.0, abs(mean)) for mean, deviation in found.values())
        if found and same and not self._said_same_rewards:
            self._said_same_rewards = True
            values = ", ".join(f"{name}: {mean:.3g}" for name, (mean, _) in found.items())
            logger.warning(
                f"Step {self.state.global_step}: all rewards since the last log are the same ({values}), so there is "
                "nothing to learn from them. If this goes on, check the reward functions."
            )

    # ------------------------------------------------------------------------------------------------------- loss

    def _mean(self, total: torch.Tensor, own: int, count: torch.Tensor | int | None) -> torch.Tensor:
        """
        This batch's part of the mean loss of a step.

        Args:
            total (`torch.Tensor`): Sum of the losses of this batch.
            own (`int`): How many losses that are.
            count (`int` or `torch.Tensor`, *optional*): How many there are in all micro-batches and processes of the
                step. Divided by this number, the gradient depends neither on accumulation nor on unequal batches.
        """
        if count is None:
            return total / max(own, 1)
        # Distributed wrappers average gradients over processes, where a sum is needed.
        return total / count * self.accelerator.num_processes

    @property
    def aux_loss_enabled(self) -> bool:
        """Whether the load balancing loss of a mixture of experts is added to the loss."""
        return self.router_aux_loss_coef != 0

    def _with_aux_loss(self, loss: torch.Tensor, tokens: Any, count: torch.Tensor | int | None) -> torch.Tensor:
        """
        The loss of a batch with the load balancing loss of a mixture of experts, as TRL's trainers add it.

        It is a function of the batch and no sum over prompts: a step has its mean over micro-batches and processes.

        Args:
            loss (`torch.Tensor`): From [`_mean`].
            tokens: The log-probabilities or values of the batch, and its load balancing loss.
            count (`int` or `torch.Tensor`, *optional*): As for [`_mean`].
        """
        aux_loss = tokens.aux_loss
        if aux_loss is None:
            return loss
        self._meters[self._mode].add_values("aux_loss", aux_loss.detach()[None])
        batches = 1 if count is None else self.current_gradient_accumulation_steps
        return loss + self.router_aux_loss_coef * aux_loss.to(loss.device) / batches

    def _through_parts(self, loss: torch.Tensor, tokens: TokenLogps) -> torch.Tensor:
        """
        The loss of a batch that was read in parts, after the backward passes of all of them but the last.

        Its value is that of `loss`, and its gradient that of the last part. A batch that was read at once, or without
        gradients, keeps its loss.

        Args:
            loss (`torch.Tensor`): The complete loss of the batch, a function of `tokens`.
            tokens ([`~trl_ext.logprobs.token_logps.TokenLogps`]): The log-probabilities of the batch.
        """
        if tokens.parts is None:
            return loss
        shares = tokens.parts.shares(loss)
        for share in islice(shares, len(tokens.parts) - 1):
            self.accelerator.backward(share)
        last = next(shares)
        return loss.detach() + (last - last.detach())

    def _zero_loss(
        self, read: Callable[[Any, Any], TokenLogps | torch.Tensor], inputs: dict[str, Any]
    ) -> torch.Tensor:
        """
        The loss, 0, of a batch without scored completions. The model runs all the same, as on every other process.

        Args:
            read (`Callable`): From prompts and completions to their log-probabilities, or to another tensor that
                depends on the model's weights.
            inputs (`dict`): The batch.
        """
        tokens = read(inputs["prompt_ids"][:1], [[[self._tokenizer.pad_token_id]]])
        if isinstance(tokens, torch.Tensor):
            return tokens.sum() * 0.0
        return self._through_parts(tokens.logps.sum() * 0.0, tokens)

    def get_batch_samples(
        self, epoch_iterator: Iterator[dict[str, Any]], num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, Any]], Any]:
        """
        The micro-batches of one optimizer step, and what their loss is averaged over.

        None are left after `max_steps`: transformers' loop would train a step more when it resumes from a last
        checkpoint within an epoch. A stream may end within a step. Batches without completions fill that step up: the
        loop would take no step after fewer than `num_batches`, and add their gradient to that of the next step.
        """
        if self.state.global_step >= self.state.max_steps:
            return [], None
        batches, count = self._batches_of_step(epoch_iterator, num_batches, device)
        missing = num_batches - len(batches) if batches else 0
        return [*batches, *(_without_completions(batches[0]) for _ in range(missing))], count

    def _batches_of_step(
        self, epoch_iterator: Iterator[dict[str, Any]], num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, Any]], Any]:
        """The same for a step that there is; a method may add to the batches here."""
        return super().get_batch_samples(epoch_iterator, num_batches, device)

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
        Loss and metrics on `eval_dataset` (by default the constructor's), or on each of several datasets.

        The rows may have any of the forms that training takes.
        """
        if eval_dataset is None or isinstance(eval_dataset, str):
            parts = self.eval_dataset if eval_dataset is None else self.eval_dataset[eval_dataset]
        else:
            parts = eval_dataset
        metrics: dict[str, float] = {}
        if isinstance(parts, dict):
            for name, part in parts.items():
                metrics |= self._evaluate_one(part, ignore_keys, f"{metric_key_prefix}_{name}", name)
        else:
            metrics = self._evaluate_one(parts, ignore_keys, metric_key_prefix)
        if self.is_in_train and eval_dataset is None:  # before transformers looks for it, with a `KeyError`
            check_best_metric(self.args.metric_for_best_model, metrics)
        return metrics

    def _before_evaluation(self, dataset: Any) -> None:
        """Called with the tokenized rows before they are evaluated."""

    def _evaluate_one(
        self, dataset: Any, ignore_keys: list[str] | None, prefix: str, name: str = "eval"
    ) -> dict[str, float]:
        with self._showing_progress():
            dataset = self._begin_evaluation(dataset, name, prefix)
            metrics = super().evaluate(dataset, ignore_keys, prefix)
        self._show_evaluation(prefix)
        return metrics

    def predict(
        self, test_dataset: AnyDataset, ignore_keys: list[str] | None = None, metric_key_prefix: str = "test"
    ) -> PredictionOutput:
        """
        Predictions, labels and metrics on `test_dataset`.

        The rows may have any of the forms that training takes. The metrics are those of [`evaluate`], not logged.
        """
        with self._showing_progress():
            dataset = self._begin_evaluation(test_dataset, "test", metric_key_prefix)
            output = super().predict(dataset, ignore_keys, metric_key_prefix)
        predictions, labels = with_nan(output.predictions, output.label_ids)
        output = output._replace(predictions=predictions, label_ids=labels)
        metrics = self._meters["eval"].pop(self.accelerator)
        output.metrics.update({f"{metric_key_prefix}_{name}": value for name, value in metrics.items()})
        self._show_evaluation(metric_key_prefix)
        return output

    def _begin_evaluation(self, dataset: Any, name: str, prefix: str) -> Any:
        """The tokenized rows of a dataset called `name`. The metrics of an evaluation that failed are forgotten."""
        if dataset is not None and not is_tokenized(dataset):
            dataset = self._prepare_dataset(self._as_scored_rows(dataset, self.args, name), self.args, name)
            dataset = self._check_context_length(dataset, self.args, name)
        self._eval_prefix, self._eval_batches = prefix, 0
        self._meters["eval"], self._eval_tables = Meters(), []
        if dataset is not None:
            groups = dataset["completion_ids"] if _has_completions(dataset) else ()
            self._eval_width = max([self.args.completions_per_prompt("eval"), *map(len, groups)])
            self._before_evaluation(dataset)
        return dataset

    def _show_evaluation(self, prefix: str) -> None:
        if self.args.log_completions:
            tables, self._eval_tables = self._eval_tables, []
            show_tables(tables, self.accelerator, self.args, self.state.global_step, prefix)

    # ------------------------------------------------------------------------------------------------ checkpoints

    def _restore_state(self, folder: Path | None) -> None:
        """Load what `_save_state` added to a checkpoint; without a checkpoint, start from the beginning."""

    def _save_state(self, folder: Path) -> None:
        """Add a method's own state to a checkpoint."""

    def train(self, resume_from_checkpoint: str | os.PathLike | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        check_trainable(self.model)
        path = resume_from_checkpoint
        if path is True:
            path = last_checkpoint(self.args.output_dir) or True  # transformers raises if there is none
        elif isinstance(path, os.PathLike):
            path = os.fspath(path)
        if isinstance(path, str) and self._samples and self.args.ignore_data_skip:
            raise ValueError(
                "`ignore_data_skip` cannot resume a run that generates completions: those in the checkpoint belong to "
                "the rows that would be skipped."
            )
        folder = Path(path) if isinstance(path, str) else None
        if folder is not None:
            check_resumable(folder)
            self._check_continues(folder)
        self._checkpoint = folder
        with self._showing_progress(), training_in(self.args.output_dir):
            return super().train(path, *args, **kwargs)

    def _begin_training(self) -> None:
        """Start from the checkpoint, or the beginning; again for each size that `auto_find_batch_size` tries."""
        self._meters["train"], self._num_tokens, self._guard.skipped = Meters(), 0, 0
        if self._samples and self._rounds is not None:
            self._rounds.restore(self._checkpoint)
        self._restore_state(self._checkpoint)

    def _check_continues(self, folder: Path) -> None:
        args = self.args
        if args.ignore_data_skip:  # the rows that were trained on are not skipped, so they may be others
            return
        random = not args.disable_dropout or args.neftune_noise_alpha
        check_continues(
            folder,
            RunRecord.of(self),
            exact_layout=bool(self._samples or self._repeats() > 1 or random),
            finds_batch_size=args.auto_find_batch_size,
        )

    def create_model_card(
        self, model_name: str | None = None, dataset_name: str | None = None, tags: str | list[str] | None = None
    ) -> None:
        """
        Write a model card, `README.md` in `output_dir`: what the model is, code that uses it, and how it was trained.

        Args:
            model_name (`str`, *optional*): Name of the model. By default that of its repository or directory.
            dataset_name (`str`, *optional*): Name of the dataset on the Hub. By default where `train_dataset` is from.
            tags (`str` or `list[str]`, *optional*): Further tags.
        """
        if not self.is_world_process_zero():
            return
        place = self.hub_model_id or self.args.output_dir
        trained = self._trained_model(quoted(place, published=False), self._language_model)
        title = model_name or Path(place).name
        text = model_card(self, title, trained, dataset_name or dataset_of(self.train_dataset), tags)
        write_text(Path(self.args.output_dir) / "README.md", text)

    def _trained_model(self, place: str, language_model: str) -> TrainedModel:
        """
        What the model card writes about the model: by default, that it is a language model.

        Args:
            place (`str`): Where the trained model is, as a Python string.
            language_model (`str`): Name or directory of the language model that was passed to the trainer.
        """
        return language_model_card(self.model, place, language_model, self._tokenizer)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        folder = output_dir or self.args.output_dir
        note = contextlib.nullcontext() if _internal_call else saving("The model in", folder, self.args.output_dir)
        with shown(not self.args.disable_tqdm), library_progress("saving the model"), note:
            super().save_model(output_dir, _internal_call)
            if folder == self.args.output_dir:
                self.create_model_card()  # PEFT writes another with the adapter

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        name = self.args.hub_model_id.split("/")[-1] if self.args.hub_model_id else Path(self.args.output_dir).name
        folder = Path(self._get_output_dir(trial=trial)) / f"checkpoint-{self.state.global_step}"
        with saving("The checkpoint", folder, folder.parent):
            self.create_model_card(model_name=name)
            if self.args.should_save:
                begin(folder)
                RunRecord.of(self).save(folder)
            self._count_tokens()  # a reduction: no process goes on before the folder is empty
            # First, so that no checkpoint that is otherwise complete lacks its completions.
            if self._samples and self._rounds is not None:
                self._rounds.save(folder)
            self._save_state(folder)
            self.accelerator.wait_for_everyone()  # the main process writes the file that makes it complete last
            super()._save_checkpoint(model, trial)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        # transformers copies the files of a checkpoint, not its folders, to where it uploads from.
        for name in getattr(self.model, "saved_folders", ()):
            source = Path(checkpoint_folder) / name
            if self.is_world_process_zero() and source.is_dir():
                shutil.copytree(source, Path(self.args.output_dir) / name, dirs_exist_ok=True)
        super()._push_from_checkpoint(checkpoint_folder)

    @property
    def _loads_parts(self) -> bool:
        """Whether checkpoints lack the backbone of the model."""
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


def _nothing_to_learn_from(sampled: Round) -> str:
    """Why a round whose completions are all left out has no effect."""
    number = len(sampled.is_sampled)
    if any(math.isfinite(score) for score in sampled.table["score"]):
        return (
            f"all of the {number} completions were cut off, so this step has no effect: "
            "`mask_truncated_completions` leaves them out. Raise `max_completion_length`, or switch it off."
        )
    return (
        f"none of the {number} completions has a score, so this step has no effect: the reward functions returned "
        "None or NaN."
    )


def _without_completions(batch: dict[str, Any]) -> dict[str, Any]:
    """A micro-batch whose loss is 0: a prompt of `batch`, without completions."""
    return {
        "prompt_ids": batch["prompt_ids"][:1],
        **{name: [[]] for name in ("completion_ids", "scores", "rewards", "marks", "token_rewards")},
    }


def _has_completions(dataset: AnyDataset) -> bool:
    """Whether the tokenized rows, which are no stream, have completions."""
    return isinstance(dataset, Dataset) and "completion_ids" in dataset.column_names


def _workers_for(dataset: IterableDataset, args: ExtConfig) -> int:
    """Number of worker processes that read a stream: a stream of one part cannot be shared out."""
    return args.dataloader_num_workers if dataset.num_shards > 1 else 0


@contextlib.contextmanager
def _workers(args: ExtConfig, dataset: Any) -> Iterator[None]:
    """Inside this context, the config's settings of worker processes are those for `dataset`."""
    names = ("dataloader_num_workers", "dataloader_persistent_workers", "dataloader_prefetch_factor")
    before = {name: getattr(args, name) for name in names}
    if isinstance(dataset, IterableDataset) and not _workers_for(dataset, args):
        args.dataloader_num_workers, args.dataloader_persistent_workers = 0, False
        args.dataloader_prefetch_factor = None
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(args, name, value)


def _name_of(model: Any) -> str:
    """The Hub id or directory of a model, as given, or as its config records it."""
    return model if isinstance(model, str) else str(get_config_model_id(model.config) or "")
