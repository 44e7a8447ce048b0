# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""The trainer of VAS: scored samples of a frozen model in, a value model out."""

import contextlib
import json
import math
import os
import textwrap
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

import torch
from accelerate.utils import gather_object
from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainerCallback,
    set_seed,
)
from transformers.utils import logging

from ..calibration import half_way, roll_out
from ..checkpoints import last_checkpoint
from ..copies import sampling_copy
from ..data import DataError, column_names
from ..meters import Meters
from ..models import freeze, is_peft_model, is_quantized, load_model, use_exact_4bit_on_cpu
from ..moments import Pairs, Running
from ..repeats import RepeatedSteps
from ..retokenize import vocabulary_difference
from ..returns import td_lambda
from ..rewards import RewardFunc, load_rewards
from ..rollouts import Rollout, Round, measure_round, score_round, seeded, show_tables
from ..rounds import Rounds
from ..sampling import evaluation_mode, generate
from ..states import States, TokenStates
from ..tokens import TOKENIZED_COLUMNS, ensure_pad_token, load_tokenizer, use_chat_template
from ..upstream import (
    BaseTrainer,
    disable_dropout_in_model,
    get_act_offloading_ctx_manager,
    get_config_model_id,
    global_then_local_main_first,
    prepare_deepspeed,
    prepare_fsdp,
    unwrap_model_for_generation,
)
from .config import VASConfig
from .data import DEFAULT_HEAD, DataCollatorForValues, heads_of, prepare_values, reward_tensors, totals
from .generation import ValueAugmentedLogitsProcessor
from .losses import discounted_return, normalize, value_loss
from .model import ValueConfig, ValueModel, add_adapter


if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel

logger = logging.get_logger(__name__)

AnyDataset: TypeAlias = Dataset | IterableDataset
EvalDataset: TypeAlias = AnyDataset | DatasetDict | IterableDatasetDict | dict[str, AnyDataset]

THIRDS = ("early", "middle", "late")  # of a completion: what is hard to say early is easy late


class VASTrainer(BaseTrainer):
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
            language model's own weights.

    Raises:
        `ValueError`, `TypeError`: Arguments that contradict each other; the message says which.
        [`~trl_ext.data.DataError`]: A row or column that cannot be used.

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
            args = VASConfig(f"{name.rstrip('/').split('/')[-1]}-VAS")
        if not isinstance(train_dataset, Dataset | IterableDataset):
            raise TypeError(
                "`train_dataset` is required and must be a `Dataset` or `IterableDataset`, got "
                f"`{type(train_dataset).__name__}`."
            )
        if isinstance(train_dataset, IterableDataset):
            args.accelerator_config.dispatch_batches = False  # ragged lists cannot be concatenated across processes
        set_seed(args.seed)  # an adapter's initial weights are random
        self._tokenizer = self._load_tokenizer(name, model, args, processing_class)
        value_model = args.value_model_name_or_path if value_model is None else value_model

        # Data and rewards before the models: a mistake there should not cost the time of loading weights.
        self.rewards = self._load_rewards(reward_funcs, reward_processing_classes, args)
        self._raw_columns = set(column_names(train_dataset)) if self.rewards else set()
        self.heads = self._choose_heads(train_dataset, args)
        self._dropped_rows: int | None = None
        train_dataset = self._prepare_dataset(train_dataset, args, "train")
        eval_dataset = self._prepare_eval_dataset(eval_dataset, args)
        self._samples = self._check_sampling(args, train_dataset)

        self.policy = self._load_policy(model, args, quantization_config, value_model, eval_dataset)
        model = self._load_value_model(value_model, args, quantization_config, peft_config)
        model.config.record_tokenizer(self._tokenizer)
        model.config.gamma, model.config.lam = args.gamma, args.lam
        self.states = States(
            model,
            self._tokenizer.pad_token_id,
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
        if args.n_gpu > 1:
            raise ValueError(
                "Several GPUs are visible to one process, which `nn.DataParallel` cannot train here. Use `accelerate "
                "launch`, or make one GPU visible with CUDA_VISIBLE_DEVICES."
            )
        self._place_policy()
        self._rounds = Rounds(
            lambda rows: self._sample_round(rows).rollouts,
            self.accelerator,
            every_steps=args.resample_steps,
            every_epochs=self._epochs_per_round(),
            keep=args.keep_samples,
        )
        self._offload = (
            get_act_offloading_ctx_manager(model=self.model)
            if args.activation_offloading
            else contextlib.nullcontext()
        )
        self._targets: dict[str, torch.Tensor] = {}  # of the step that is being repeated, by the rows of a micro-batch
        self._running = [Running() for _ in self.heads]
        if args.normalize_rewards and not self._samples and isinstance(train_dataset, Dataset):
            self._observe(train_dataset["token_rewards"], share=False)
        self._meters = {"train": Meters(), "eval": Meters()}
        self._pairs = {"train": Pairs(), "eval": Pairs()}
        self._calibration: dict[str, float] = {}
        self._eval_prefix, self._eval_batches = "eval", 0
        self._eval_tables: list[dict[str, list[Any]]] = []
        self._num_tokens = 0
        self.model.add_model_tags(self._tag_names)

    def _send_telemetry(self) -> None:
        """Runs of a third party's trainer are not TRL's to count."""

    # ------------------------------------------------------------------------------------------------ preparation

    @staticmethod
    def _load_tokenizer(name: str, model: Any, args: VASConfig, processing_class: Any) -> PreTrainedTokenizerBase:
        if processing_class is None:
            kwargs = args.model_init_kwargs if isinstance(args.model_init_kwargs, dict) else {}
            revision = kwargs.get("revision") if isinstance(model, str) else None
            processing_class = load_tokenizer(name, revision=revision, trust_remote_code=args.trust_remote_code)
        if not isinstance(processing_class, PreTrainedTokenizerBase):
            raise TypeError(
                f"`processing_class` must be a tokenizer, got `{type(processing_class).__name__}`: VAS steers "
                "language models; rows with images are not supported."
            )
        ensure_pad_token(processing_class)
        if args.chat_template_path:
            use_chat_template(processing_class, args.chat_template_path)
        return processing_class

    @staticmethod
    def _load_rewards(reward_funcs: Any, processing_classes: Any, args: VASConfig) -> list[Any]:
        kwargs = {"device": args.device, "trust_remote_code": args.trust_remote_code}
        rewards = load_rewards(reward_funcs, processing_classes, **kwargs) if reward_funcs else []
        if args.reward_weights and len(args.reward_weights) != len(rewards):
            raise ValueError(
                f"`reward_weights` has {len(args.reward_weights)} entries for {len(rewards)} reward functions."
            )
        return rewards

    def _choose_heads(self, dataset: AnyDataset, args: VASConfig) -> list[str]:
        """Names of the heads, and that there are rewards to train each."""
        names = [reward.name for reward in self.rewards]
        scored = bool({"completions", "chosen"} & set(column_names(dataset)))
        if args.heads:
            heads = list(args.heads)
        elif scored:
            heads = heads_of(dataset, "train")
        else:
            heads = names if len(names) > 1 else [DEFAULT_HEAD]
        unknown = [head for head in heads if head not in [*names, DEFAULT_HEAD]]
        if unknown and (not scored or args.num_iterations > 1):
            raise ValueError(
                f"Nothing rewards sampled completions for the head {unknown[0]!r}. The reward functions are "
                f"{', '.join(map(repr, names)) or 'none'}; {DEFAULT_HEAD!r} is their weighted sum."
            )
        return heads

    def _prepare_dataset(self, dataset: AnyDataset, args: VASConfig, name: str) -> AnyDataset:
        with global_then_local_main_first():
            dataset, dropped = prepare_values(
                dataset,
                self._tokenizer,
                name=name,
                max_length=args.max_length,
                num_proc=args.dataset_num_proc,
                heads=self.heads,
            )
        if dropped:
            logger.warning(
                f"{dropped} rows of the {name} data set were dropped: their prompt alone fills max_length="
                f"{args.max_length}."
            )
        if isinstance(dataset, Dataset) and self._dropped_rows is None:
            self._dropped_rows = dropped  # of the train set, which comes first
        return dataset

    def _prepare_eval_dataset(self, dataset: EvalDataset | None, args: VASConfig) -> Any:
        if dataset is None:
            return None
        if isinstance(dataset, dict):
            return {name: self._prepare_dataset(part, args, name) for name, part in dataset.items()}
        return self._prepare_dataset(dataset, args, "eval")

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

    # ------------------------------------------------------------------------------------------------------ models

    def _load_policy(self, model: Any, args: VASConfig, quantization_config: Any, value_model: Any, evals: Any) -> Any:
        """The frozen model, or `None` where nothing needs it."""
        parts = evals.values() if isinstance(evals, dict) else [evals]
        prompts_alone = any(part is not None and "completion_ids" not in column_names(part) for part in parts)
        if not (self._samples or args.calibration_rollouts or value_model is None or prompts_alone):
            return None
        if isinstance(model, str):
            model = load_model(model, **_init_kwargs(args, args.model_init_kwargs, quantization_config))
        use_exact_4bit_on_cpu(model)
        return freeze(model)

    def _load_value_model(
        self, value_model: Any, args: VASConfig, quantization_config: Any, peft_config: Any
    ) -> ValueModel:
        if value_model is None:
            if peft_config is None:
                raise ValueError(
                    "There is no value model. Pass `value_model` (`value_model_name_or_path`: a small model with the "
                    "language model's tokenizer), or `peft_config` (`--use_peft`) for an adapter and a head on the "
                    "language model itself."
                )
            value_model = ValueModel.on_policy(self.policy, self.heads, peft_config=peft_config)
        else:
            if isinstance(value_model, str):
                self._check_tokenizer(value_model, args)
                kwargs = _init_kwargs(args, args.value_model_init_kwargs, quantization_config)
                value_model = _load_backbone(value_model, self.heads, kwargs)
            elif not isinstance(value_model, ValueModel):
                value_model = ValueModel.from_backbone(value_model, self.heads)
            if peft_config is not None:
                value_model.backbone = add_adapter(value_model.backbone, peft_config)
        self._check_value_model(value_model)
        if is_peft_model(value_model.backbone) and args.gradient_checkpointing:
            value_model.backbone.enable_input_require_grads()
        if args.disable_dropout:
            disable_dropout_in_model(value_model)
        return value_model

    def _check_tokenizer(self, name: str, args: VASConfig) -> None:
        """A value model given by name must read the language model's tokens."""
        try:
            tokenizer = load_tokenizer(name, trust_remote_code=args.trust_remote_code)
        except (OSError, ValueError):  # saved without one: what can be seen of the model itself is checked later
            return
        difference = vocabulary_difference(self._tokenizer, tokenizer)
        if difference is not None:
            token, mine, theirs = difference
            raise ValueError(
                f"The value model {name!r} has another vocabulary than the language model: token {token} is "
                f"{theirs!r} for it and {mine!r} for the language model. {_OTHER_VOCABULARY}"
            )

    def _check_value_model(self, model: ValueModel) -> None:
        if list(model.head_names) != self.heads:
            raise ValueError(
                f"The value model has the heads {', '.join(map(repr, model.head_names))}, but the data and settings "
                f"ask for {', '.join(map(repr, self.heads))}. Set `heads` to those of the model, or begin a new one."
            )
        if is_quantized(model.backbone) and not is_peft_model(model.backbone):
            raise ValueError(
                "A quantised value model cannot be trained without an adapter: pass `peft_config` (`--use_peft` on "
                "the command line)."
            )
        rows = model.get_input_embeddings().num_embeddings
        if rows < max(self._tokenizer.get_vocab().values()) + 1:
            raise ValueError(
                f"The value model knows {rows} tokens, the tokenizer has {len(self._tokenizer)}. {_OTHER_VOCABULARY}"
            )

    def _place_policy(self) -> None:
        """Put the frozen model where it can sample, sharded as the value model is."""
        if self.policy is None:
            return
        sharded = self.is_deepspeed_enabled or self.is_fsdp_enabled
        if sharded and self.model.shares_policy:
            raise ValueError(
                "An adapter on the language model's own weights cannot be trained under DeepSpeed or FSDP: pass a "
                "`value_model` of its own."
            )
        if self.is_deepspeed_enabled:
            self.policy = prepare_deepspeed(self.policy, self.accelerator)
        elif self.is_fsdp_enabled:
            self.policy = prepare_fsdp(self.policy, self.accelerator)
        elif not is_quantized(self.policy):
            self.policy.to(self.accelerator.device)

    # ---------------------------------------------------------------------------------------------------- sampling

    def _set_signature_columns_if_needed(self) -> None:
        # Reward functions are given the data set's other columns; preference rows became `prompt` and `completions`.
        extra = self._raw_columns | {"prompt", "completions"} if self._raw_columns else set()
        extra |= {"token_rewards"}
        self._signature_columns = [*TOKENIZED_COLUMNS, *sorted(extra - set(TOKENIZED_COLUMNS))]

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        if self.args.num_epochs_per_batch == 1:
            return super()._get_train_sampler(train_dataset)
        args, dataset = self.args, self.train_dataset if train_dataset is None else train_dataset
        step_size = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
        seed = args.seed if args.data_seed is None else args.data_seed
        return RepeatedSteps(
            len(dataset),
            step_size,
            args.num_epochs_per_batch,
            seed,
            lambda: int(self.state.epoch or 0),
            shuffle=args.train_sampling_strategy != "sequential",
        )

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
        args, process = self.args, self.accelerator.process_index
        if mode == "train" and not self._round() and "completion_ids" in (rows[0] if rows else {}):
            sampled = Round({row["row_index"]: self._own(row) for row in rows})  # the data set's, in the first round
        else:
            # Every evaluation draws the same numbers, and every batch of it others.
            step = self.state.global_step if mode == "train" else -1 - self._eval_batches
            guided = bool(mode == "train" and self._round() and args.sampling_beta)
            with seeded(args.seed, step, process), self._sampling_policy() as policy:
                completions = generate(
                    policy,
                    self._tokenizer,
                    [row["prompt_ids"] for row in rows],
                    args.generation_settings(),
                    batch_size=self._generation_batch_size(),
                    processors=self._guides if guided else None,
                )
            sampled = score_round(
                rows, completions, self.rewards, args.reward_weights, max_length=args.max_length,
                trainer_state=self.state,
            )  # fmt: skip
            measure_round(sampled, self.rewards, self._meters[mode])
            if args.log_completions and mode == "train":
                show_tables([sampled.table], self.accelerator, args, self.state.global_step, mode)
            elif args.log_completions:
                self._eval_tables.append(sampled.table)
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

    @contextlib.contextmanager
    def _sampling_policy(self) -> Iterator[Any]:
        """The frozen model, ready to draw from."""
        with (
            unwrap_model_for_generation(self.policy, self.accelerator) as policy,
            evaluation_mode(self.model),  # what guides keeps a cache, which checkpointing in training does not allow
            torch.no_grad(),
            self.compute_loss_context_manager(),
        ):
            yield policy if self.model.shares_policy else sampling_copy(policy, self.args)

    def _guides(self, ids_PT: torch.Tensor, mask_PT: torch.Tensor) -> list[ValueAugmentedLogitsProcessor]:
        args = self.args
        weights = dict(zip([reward.name for reward in self.rewards], args.reward_weights or [], strict=False))
        beta = {head: args.sampling_beta * weights.get(head, 1.0) for head in self.heads}
        return [
            ValueAugmentedLogitsProcessor(
                self.model,
                beta=beta if len(beta) > 1 else args.sampling_beta,
                top_k=args.sampling_candidates,
                pad_token_id=self._tokenizer.pad_token_id,
                attention_mask=mask_PT,
            )
        ]

    def _generation_batch_size(self) -> int:
        return self.args.generation_batch_size or (64 if self.accelerator.device.type == "cpu" else 128)

    def _observe(self, groups: list[Any], share: bool = True) -> None:
        """Take rewards into the mean and deviation that they are normalised by, alike on every process."""
        numbers = [totals(groups, h) for h in range(len(self.heads))]
        parts = gather_object([numbers]) if share and self.accelerator.num_processes > 1 else [numbers]
        for h, running in enumerate(self._running):
            running.add([x for part in parts for x in part[h]])
        self._record_normalization()

    def _record_normalization(self) -> None:
        self.model.config.reward_mean = [running.mean for running in self._running]
        self.model.config.reward_std = [running.std for running in self._running]

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
            return self._zero_loss(model, inputs)
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
        if num_items_in_batch is None:
            loss = loss_NTH.sum() / sum(lengths)
        else:
            # Distributed wrappers average gradients over processes; the sum is what the count belongs to.
            loss = loss_NTH.sum() / num_items_in_batch * self.accelerator.num_processes
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
        by_head = [
            td_lambda(rewards_NTH[..., h], tokens.states[..., h].detach(), tokens.mask, self.args.gamma, lam)
            for h in range(len(self.heads))
        ]
        targets_NTH = torch.stack(by_head, dim=-1)
        if self.model.training and self.args.num_epochs_per_batch > 1:
            self._targets[key] = targets_NTH
        return targets_NTH

    def _zero_loss(self, model: torch.nn.Module, inputs: dict[str, Any]) -> torch.Tensor:
        """A batch whose completions no reward function could score: every process still has to run the model."""
        tokens = self.states(model, inputs["prompt_ids"][:1], [[[self._tokenizer.pad_token_id]]])
        return tokens.states.sum() * 0.0

    @torch.no_grad()
    def _measure(
        self, tokens: TokenStates, rewards_NTH: torch.Tensor, mask_NTH: torch.Tensor, loss_NTH: torch.Tensor
    ) -> None:
        training = self.model.training
        mode = "train" if training else "eval"
        if not training:
            self._meters[mode].add("loss", loss_NTH.sum(), tokens.mask.sum())  # pooled, as rows differ in tokens
        lengths_N1 = tokens.mask.sum(dim=1, keepdim=True)
        third_NT = torch.arange(tokens.mask.shape[1], device=tokens.mask.device) * len(THIRDS) // lengths_N1
        for h, head in enumerate(self.heads):
            actual_NT = discounted_return(rewards_NTH[..., h], tokens.mask, self.args.gamma)
            mask_NT, values_NT = mask_NTH[..., h], tokens.states[..., h]
            self._pairs[mode].add(head, values_NT[mask_NT], actual_NT[mask_NT])
            for i, third in enumerate(THIRDS if not training else ()):
                part_NT = mask_NT & (third_NT == i)
                self._pairs[mode].add(f"{head}/{third}", values_NT[part_NT], actual_NT[part_NT])

    def _figures(self, mode: str) -> dict[str, float]:
        """How well the values explain the returns, by head where there are several."""
        parts = ["", *(f"/{third}" for third in THIRDS)] if mode == "eval" else [""]
        names = [f"{head}{part}" for head in self.heads for part in parts]
        found = self._pairs[mode].pop(self.accelerator, names)
        metrics = {}
        for name, figures in found.items():
            head, _, third = name.rpartition("/") if name not in self.heads else (name, "", "")
            tail = (f"/{third}" if third else "") + (f"/{head}" if len(self.heads) > 1 else "")
            metrics[f"explained_variance{tail}"] = figures.get("explained_variance", math.nan)
            metrics[f"correlation{tail}"] = figures.get("correlation", math.nan)
            if not third:
                metrics[f"values/mean{tail}"] = figures["mean"]
        return {name: value for name, value in metrics.items() if not math.isnan(value)}

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        with self._offload, self.model.hold_adapter():
            return super().training_step(*args, **kwargs)

    # -------------------------------------------------------------------------------------------------- evaluation

    def evaluate(
        self,
        eval_dataset: Any = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """
        Loss against the returns themselves (as with `lam=1`), and how well the values explain and follow them, on
        `eval_dataset` (by default the constructor's), whose rows may have any of the forms that training takes.

        With `calibration_rollouts` also `calibration/r2` and `calibration/correlation` of the value half-way through a
        completion with the mean reward of continuations that the frozen model draws from there.
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

    def _evaluate_one(self, dataset: Any, ignore_keys: list[str] | None, prefix: str) -> dict[str, float]:
        if dataset is not None and "prompt_ids" not in column_names(dataset):
            dataset = self._prepare_dataset(dataset, self.args, "eval")
        self._eval_prefix, self._eval_batches = prefix, 0
        self._calibration = self._calibrate(dataset) if self.args.calibration_rollouts and dataset is not None else {}
        metrics = super().evaluate(dataset, ignore_keys, prefix)
        if self.args.log_completions:
            tables, self._eval_tables = self._eval_tables, []
            show_tables(tables, self.accelerator, self.args, self.state.global_step, prefix)
        return metrics

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
        args, processes = self.args, self.accelerator.num_processes
        rows = list(dataset.take(args.calibration_states)) if isinstance(dataset, IterableDataset) else list(dataset)
        settings = args.generation_settings()
        with seeded(args.seed, -1_000_003, self.accelerator.process_index), self._sampling_policy() as policy:
            batch_size = self._generation_batch_size()
            if rows and "completion_ids" in rows[0]:
                groups = [row["completion_ids"] for row in rows]
            else:
                rows = rows[: args.calibration_states]
                one = replace(settings, num_generations=1)
                prompts = [row["prompt_ids"] for row in rows]
                drawn = generate(policy, self._tokenizer, prompts, one, batch_size=batch_size)
                groups = [[completion.ids for completion in group] for group in drawn]
            states = half_way(rows, groups, args.calibration_states)[self.accelerator.process_index :: processes]
            settings = replace(settings, num_generations=args.calibration_rollouts)
            table = roll_out(
                policy, self._tokenizer, states, settings, self.rewards, args.reward_weights,
                batch_size=batch_size, trainer_state=self.state,
            )  # fmt: skip
            values_NH = self._values_at(states)
        return self._compare(values_NH, table)

    def _values_at(self, states: list[Any]) -> torch.Tensor:
        """Values of half completions, in units of the rewards."""
        found = []
        for start in range(0, len(states), self._generation_batch_size()):
            part = states[start : start + self._generation_batch_size()]
            tokens = self.states(self.model, [s.row["prompt_ids"] for s in part], [[s.completion_ids] for s in part])
            last_N = tokens.mask.sum(dim=1) - 1
            found.append(tokens.states[torch.arange(len(part)), last_N].float().cpu())
        values_NH = torch.cat(found) if found else torch.zeros(0, len(self.heads))
        config = self.model.config
        return values_NH * torch.tensor(config.reward_std) + torch.tensor(config.reward_mean)

    def _compare(self, values_NH: torch.Tensor, table: Any) -> dict[str, float]:
        pairs = Pairs()
        metrics: dict[str, float] = {}
        for h, head in enumerate(self.heads):
            rewards = torch.tensor(table.by_name.get(head, table.total), dtype=torch.float64)
            pairs.add(head, values_NH[:, h], rewards.view(len(values_NH), -1).nanmean(dim=1))
        for head, figures in pairs.pop(self.accelerator, self.heads).items():
            tail = f"/{head}" if len(self.heads) > 1 else ""
            metrics |= {
                f"calibration/{name}{tail}": figures[name] for name in ("r2", "correlation") if name in figures
            }
        return metrics

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        mode = "train" if self.model.training else "eval"
        metrics = self._meters[mode].pop(self.accelerator) | self._figures(mode)
        if mode == "eval":
            metrics |= self._calibration
            self._calibration = {}
            metrics = {f"{self._eval_prefix}_{name}": value for name, value in metrics.items()}
        elif metrics:
            tokens = torch.tensor(self._num_tokens, device=self.accelerator.device)
            metrics["num_tokens"] = float(self.accelerator.reduce(tokens, reduction="sum"))
            if self._dropped_rows is not None:
                metrics["dropped_rows"] = float(self._dropped_rows)
        logs.update(metrics)
        super().log(logs, start_time)

    # ------------------------------------------------------------------------------------------------- checkpoints

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
        if self._samples:
            self._rounds.restore(folder)
        self._targets = {}
        if folder is not None:
            self._restore_state(folder)
        return super().train(path, *args, **kwargs)

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        name = self.args.hub_model_id.split("/")[-1] if self.args.hub_model_id else Path(self.args.output_dir).name
        self.create_model_card(model_name=name)
        # Before everything else, so that no checkpoint that is otherwise whole lacks its round.
        folder = Path(self._get_output_dir(trial=trial)) / f"checkpoint-{self.state.global_step}"
        folder.mkdir(parents=True, exist_ok=True)
        if self._samples:
            self._rounds.save(folder)
        if self._targets and self.state.global_step % self.args.num_epochs_per_batch:
            save_file({k: v.cpu().contiguous() for k, v in self._targets.items()}, self._targets_file(folder))
        if self.args.normalize_rewards and self.accelerator.is_main_process:
            moments = [[running.count, running.mean, running.square] for running in self._running]
            (folder / "normalization.json").write_text(json.dumps(moments))
        super()._save_checkpoint(model, trial)

    def _targets_file(self, folder: Path) -> Path:
        return folder / f"targets_{self.accelerator.process_index}.safetensors"

    def _restore_state(self, folder: Path) -> None:
        """Targets of a step that was being repeated, and what rewards are normalised by."""
        if self._targets_file(folder).is_file():
            self._targets = load_file(self._targets_file(folder))
        moments = folder / "normalization.json"
        if self.args.normalize_rewards and moments.is_file():
            self._running = [Running(*numbers) for numbers in json.loads(moments.read_text())]
            self._record_normalization()

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if not is_peft_model(self.model.backbone) or self.is_fsdp_enabled:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        else:
            self.model.load_adapter_and_head(resume_from_checkpoint)

    def _load_best_model(self) -> None:
        plain = not (self.is_deepspeed_enabled or self.is_fsdp_enabled)
        if is_peft_model(self.model.backbone) and plain:
            self.model.load_adapter_and_head(self.state.best_model_checkpoint)
        else:
            super()._load_best_model()


_OTHER_VOCABULARY = (
    "Values are learned for the language model's tokens: take a value model with its tokenizer (a smaller model of "
    "the same family), or an adapter and a head on the language model itself (`peft_config`, no `value_model`)."
)


def _init_kwargs(args: VASConfig, init_kwargs: Any, quantization_config: Any) -> dict[str, Any]:
    """Keyword arguments to load a model with, as the settings and the launch say."""
    kwargs = dict(init_kwargs or {})
    if quantization_config is not None and "quantization_config" in kwargs:
        raise ValueError("`quantization_config` is given both to the trainer and in the keyword arguments of a model.")
    kwargs.setdefault("quantization_config", quantization_config)
    kwargs.setdefault("trust_remote_code", args.trust_remote_code)
    if args.distributed_state.distributed_type != "NO":
        kwargs["device_map"] = None  # each process places its own copy
    return kwargs


def _load_backbone(name: str, heads: list[str], kwargs: dict[str, Any]) -> ValueModel:
    """A saved value model to train further, or a new one on the backbone of that name."""
    where = {key: kwargs[key] for key in ("revision", "trust_remote_code") if key in kwargs}
    if isinstance(AutoConfig.from_pretrained(name, **where), ValueConfig):
        return ValueModel.from_pretrained(name, is_trainable=True, **kwargs)
    return ValueModel.from_backbone(name, heads, **kwargs)
