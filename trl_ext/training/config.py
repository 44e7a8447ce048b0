# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Settings that all methods share, on top of TRL's base config."""

from collections.abc import Iterable, Mapping
from dataclasses import Field, dataclass, field, fields
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from transformers.utils import logging

from trl_ext.data.column_names import parse_columns
from trl_ext.data.dataset_settings import COLUMNS, DATASET_FORMAT
from trl_ext.devices import CPU, accelerator_count, computes_fast, slow_reason, warn_if_slow
from trl_ext.generation_settings import GenerationSettings, setting
from trl_ext.packages import DEEPSPEED, require_package
from trl_ext.rewards.settings import RewardSettings
from trl_ext.upstream import BaseConfig
from trl_ext.validation import (
    as_mapping,
    check_at_least,
    check_fields,
    number_fields,
    true_false_or_auto,
)

from .best_metric import smaller_is_better
from .trl_settings import (
    OTHER_MEANINGS,
    REFUSED,
    RESTRICTED,
    check_arguments,
    check_restricted,
    liger_config,
    notes_on,
)


logger = logging.get_logger(__name__)

# Numbers of transformers that it does not check, with their least values.
_LEAST = {
    **dict.fromkeys(("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps"), 1),
    **dict.fromkeys(("learning_rate", "weight_decay", "warmup_steps", "max_grad_norm", "num_train_epochs"), 0),
}
NAN_ACTIONS = ("stop", "skip")


@dataclass
class ExtConfig(RewardSettings, BaseConfig):
    r"""
    Base configuration of the methods of trl-ext.

    Only the parameters that trl-ext adds, or whose defaults it changes, are listed. For the others, see
    [`~trl_ext.rewards.settings.RewardSettings`] and [`~transformers.TrainingArguments`]. A number that switches
    something off is always `0`.

    Parameters:
        > Parameters that control the model

        model_init_kwargs (`dict[str, Any]` or `str`, *optional*):
            Keyword arguments for `from_pretrained`, used when `model` is a string.
        trust_remote_code (`bool`, *optional*, defaults to `False`):
            Whether to run code that comes with a model or tokenizer on the Hub.
        bf16 (`bool` or `str`, *optional*):
            Whether to compute in bfloat16 (mixed precision). `"auto"`: on a GPU as TRL does without a value (unless
            `fp16` is set), on a CPU if it has bfloat16 instructions. `True` on a CPU without them is several times
            slower than float32. If not set, as `"auto"` on a GPU, and `False` on a CPU.
        disable_dropout (`bool`, *optional*, defaults to `True`):
            Whether to disable dropout, so that log-probabilities equal those of the model in later use.

        > Parameters that control the data

        dataset_num_proc (`int`, *optional*):
            Number of processes that tokenize the dataset.
        shuffle_dataset (`bool`, *optional*, defaults to `True`):
            Whether rows are trained on in random order. `False` is `train_sampling_strategy="sequential"`.
        pad_token (`str`, *optional*):
            Token to pad with, instead of the tokenizer's own.
        columns (`dict[str, str]` or `str`, *optional*):
            The datasets' columns for names of the row schema, as in `{"prompt": "question"}`; as text
            `"prompt=question,chosen=better"`.
        dataset_format (`str`, *optional*, defaults to `"auto"`):
            Form of the datasets' rows: a name of [`~trl_ext.data.formats.registry.FORMATS`], or `"auto"` to recognise
            it by the columns.
        chat_template_path (`str`, *optional*):
            Jinja file with a chat template, or directory or Hub id of a tokenizer that has one, to use instead of the
            tokenizer's own.
        chat_template_kwargs (`dict[str, Any]` or `str`, *optional*):
            Arguments of the chat template, such as `{"enable_thinking": False}`, wherever prompts are rendered: in
            training, generation and evaluation. A dataset's column of this name wins.
        eos_token (`str`, *optional*):
            Token that ends an answer, in training and in generation, instead of the tokenizer's end-of-sequence token:
            for a base model whose chat template ends turns with a token of its own.
        max_length (`int`, *optional*, defaults to `1024`):
            Maximum length of prompt plus completion, in tokens. A longer completion is truncated; a row whose prompt
            alone is this long is dropped, and the number of dropped rows is logged. `0` means no limit.
        truncation_mode (`str`, *optional*, defaults to `"keep_start"`):
            Which part of a longer sequence is kept. Only `"keep_start"` is supported: TRL deprecates `"keep_end"`.
        pad_to_multiple_of (`int` or `str`, *optional*, defaults to `"auto"`):
            Pad rows to a multiple of this length (`0`: no rounding). `"auto"`, as in TRL, is 128 on Neuron and `0`
            elsewhere.

        precompute_ref_log_probs (`bool`, *optional*, defaults to `False`):
            Only `False`, for configs that were written for TRL: the completions to score are generated in training.
        padding_free (`bool`, *optional*, defaults to `False`):
            Only `False`, for configs that were written for TRL: a prompt is read once for all of its completions.

        > Parameters that control generation (TRL's names; for all completions that a method generates)

        num_generations (`int`, *optional*, defaults to `4`):
            Number of completions per prompt.
        num_generations_eval (`int`, *optional*, defaults to `0`):
            The same in evaluations (`0`: as in training).
        generation_batch_size (`int`, *optional*, defaults to `0`):
            Number of sequences that a device generates at once (`0`: 64 on CPU, 128 elsewhere).
        ds3_gather_for_generation (`bool`, *optional*, defaults to `True`):
            Whether a sharded model (DeepSpeed ZeRO-3, FSDP2) is gathered on each device for generation. `False`
            fetches its layers for each token, for a model that does not fit on a device.
        cast_for_generation (`bool`, *optional*, defaults to `False`):
            Whether to generate, in training with `bf16` and float32 weights, with a copy of the model in bfloat16.
            Autocast converts every weight again for every token; the copy is faster (about twice on a CPU with
            bfloat16 instructions) and takes the memory of a copy of the weights. It has no effect on a CPU without
            them, and is an error under FSDP and DeepSpeed.
        max_completion_length (`int`, *optional*, defaults to `256`):
            Maximum length of a generated completion, in tokens.
        temperature (`float`, *optional*, defaults to `1.0`):
            Sampling temperature.
        top_k (`int`, *optional*, defaults to `0`):
            Sample from the k most likely tokens (`0`: all).
        top_p (`float`, *optional*, defaults to `1.0`):
            Sample from the most likely tokens whose probabilities sum to this.
        min_p (`float`, *optional*, defaults to `0.0`):
            Sample from tokens at least this probable relative to the most likely one (`0`: off).
        repetition_penalty (`float`, *optional*, defaults to `1.0`):
            Divides the logits of tokens that have occurred.
        cache_implementation (`str`, *optional*, defaults to `""`):
            KV cache of `generate`, such as `"static"` or `"offloaded"`; see [`~transformers.GenerationConfig`].
            Empty: chosen by the model.
        cuda_graphs (`str`, *optional*, defaults to `"auto"`):
            Whether each decoding step replays a CUDA graph over a static KV cache: `"auto"` on a GPU where the model
            supports it, `"always"` (an error if it does not), `"never"`. The distribution is the same.
        generation_kwargs (`dict[str, Any]` or `str`, *optional*):
            Further keyword arguments for [`~transformers.GenerationConfig`].

        > Parameters that control rewards

        reward_weights (`list[float]`, *optional*):
            Weight of each reward function. If not set, every weight is `1.0`.
        nan_rewards (`str`, *optional*, defaults to `"skip"`):
            What to do if a reward function returns NaN in training or evaluation (`None` means that it does not
            apply): `"skip"` ignores that reward, as TRL does, with a warning that names function, step and rows;
            `"stop"` raises an error.

        > Parameters that control training

        nan_loss (`str`, *optional*, defaults to `"stop"`):
            What to do if a loss or the gradient of a step is NaN or infinite: `"stop"` with an error that names step
            and rows, or `"skip"` the optimizer step with a warning and count it (`skipped_steps`). Gradients are left
            to the gradient scaler in fp16 and to DeepSpeed's engine, with which steps cannot be skipped.
        activation_offloading (`bool`, *optional*, defaults to `False`):
            Whether to keep activations in CPU memory between forward and backward.

        > Parameters that control logging

        print_summary (`bool`, *optional*, defaults to `True`):
            Whether a summary is printed before the first step: the model, what is trained of it, the rows, the steps,
            and the completions that are to be sampled.
        log_completions (`bool`, *optional*, defaults to `False`):
            Whether to print generated completions with their rewards and save them under `output_dir/completions`.
        num_completions_to_print (`int`, *optional*, defaults to `4`):
            Number of completions to print at a time (`None`, TRL's default: all).
        log_unique_prompts (`bool`, *optional*, defaults to `False`):
            Whether only one completion of each prompt is printed and saved.

    > [!NOTE]
    > Without an accelerator, `use_cpu` is set and `bf16` defaults to `False` (TRL's configs raise an error).
    """

    # Settings that scripts and recipes written for TRL switch off with `None`.
    none_is_zero: ClassVar[tuple[str, ...]] = (
        "max_length",
        "pad_to_multiple_of",
        "num_generations_eval",
        "generation_batch_size",
        "top_k",
        "min_p",
    )

    # Names that are no settings of this config, with the reason; settings that mean something else in TRL.
    refused_settings: ClassVar[Mapping[str, str]] = REFUSED
    restricted_settings: ClassVar[Mapping[str, Any]] = RESTRICTED
    other_meanings: ClassVar[Mapping[str, str]] = OTHER_MEANINGS

    _VALID_DICT_FIELDS: ClassVar[list[str]] = [
        *BaseConfig._VALID_DICT_FIELDS,
        "model_init_kwargs",
        "generation_kwargs",
        "chat_template_kwargs",
    ]

    given: ClassVar[Mapping[str, Any]] = {}  # what the constructor was called with
    if TYPE_CHECKING:
        bf16: bool | str | None = None
    else:  # argparse takes one type
        bf16: str | None = field(
            default=None,
            metadata={
                "help": "Whether to compute in bfloat16 (mixed precision): 'true', 'false', or 'auto', which is TRL's "
                "default on a GPU, and on a CPU whether it has bfloat16 instructions. Not set: as 'auto' on a GPU, "
                "false on a CPU.",
                **{"nargs": "?", "const": "true"},  # `--bf16` alone, as for a boolean
            },
        )

    model_init_kwargs: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Keyword arguments for `from_pretrained`, used when `model` is a string."}
    )
    trust_remote_code: bool = field(
        default=False, metadata={"help": "Whether to run code that comes with a model or tokenizer on the Hub."}
    )
    disable_dropout: bool = field(default=True, metadata={"help": "Whether to disable dropout."})

    dataset_num_proc: int | None = field(
        default=None, metadata={"help": "Number of processes that tokenize the dataset."}
    )
    shuffle_dataset: bool = field(
        default=True,
        metadata={"help": "Whether rows are in random order. False is `train_sampling_strategy: sequential`."},
    )
    pad_token: str | None = field(
        default=None, metadata={"help": "Token to pad with, instead of the tokenizer's own."}
    )
    columns: dict[str, str] | str | None = field(default=None, metadata=COLUMNS)
    dataset_format: str = field(default="auto", metadata=DATASET_FORMAT)
    chat_template_path: str | None = field(
        default=None,
        metadata={
            "help": "Jinja file with a chat template, or directory or Hub id of a tokenizer that has one, to use "
            "instead of the tokenizer's own."
        },
    )
    chat_template_kwargs: dict[str, Any] | str | None = field(
        default=None,
        metadata={
            "help": "Arguments of the chat template, such as '{\"enable_thinking\": false}', in training, generation "
            "and evaluation. A dataset's column of this name wins."
        },
    )
    eos_token: str | None = field(
        default=None,
        metadata={
            "help": "Token that ends an answer, in training and in generation, instead of the tokenizer's "
            "end-of-sequence token."
        },
    )
    max_length: int = field(
        default=1024,
        metadata={
            "help": "Maximum length of prompt plus completion, in tokens. A longer completion is truncated; a row "
            "whose prompt alone is this long is dropped. 0 means no limit."
        },
    )
    truncation_mode: str = field(
        default="keep_start",
        metadata={
            "help": "Which part of a longer sequence is kept. Only 'keep_start' is supported.",
            "choices": ["keep_start", "keep_end"],
        },
    )
    pad_to_multiple_of: int | str | None = field(
        default="auto",
        metadata={
            "help": "Pad rows to a multiple of this length. 0 means no rounding; 'auto' is 128 on Neuron and 0 "
            "elsewhere."
        },
    )

    precompute_ref_log_probs: bool = field(
        default=False, metadata={"help": "Only false: a reference scores completions that training generates."}
    )
    padding_free: bool = field(
        default=False, metadata={"help": "Only false: a prompt is read once for all of its completions instead."}
    )

    num_generations: int = field(default=4, metadata={"help": "Number of completions per prompt."})
    num_generations_eval: int = field(
        default=0, metadata={"help": "Number of completions per prompt in evaluations. 0: as in training."}
    )
    generation_batch_size: int = field(
        default=0,
        metadata={"help": "Number of sequences that a device generates at once. 0 means 64 on CPU, 128 elsewhere."},
    )
    ds3_gather_for_generation: bool = field(
        default=True,
        metadata={
            "help": "Whether a sharded model (DeepSpeed ZeRO-3, FSDP2) is gathered on each device for generation. "
            "Switch it off for a model that does not fit on a device; generation is then slow."
        },
    )
    cast_for_generation: bool = field(
        default=False,
        metadata={
            "help": "Whether to generate, in training with bf16 and float32 weights, with a copy of the model in "
            "bfloat16: faster, but takes the memory of the copy."
        },
    )
    max_completion_length: int = field(
        default=256, metadata={"help": "Maximum length of a generated completion, in tokens."}
    )
    temperature: float = setting("temperature")
    top_k: int = setting("top_k")
    top_p: float = setting("top_p")
    min_p: float = setting("min_p")
    repetition_penalty: float = setting("repetition_penalty")
    cache_implementation: str = setting("cache_implementation")
    cuda_graphs: str = setting("cuda_graphs")
    generation_kwargs: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Further keyword arguments for `GenerationConfig`."}
    )

    reward_weights: list[float] | None = field(
        default=None, metadata={"help": "Weight of each reward function. If not set, every weight is 1."}
    )

    nan_rewards: str = field(
        default="skip",
        metadata={
            "help": "What to do if a reward function returns NaN: 'skip' that reward with a warning, or 'stop'.",
            "choices": list(NAN_ACTIONS),
        },
    )

    nan_loss: str = field(
        default="stop",
        metadata={
            "help": "What to do if a loss or a gradient is NaN or infinite: 'stop' with an error, or 'skip' the "
            "optimizer step. Gradients are left to the gradient scaler in fp16 and to DeepSpeed's engine.",
            "choices": list(NAN_ACTIONS),
        },
    )
    activation_offloading: bool = field(
        default=False, metadata={"help": "Whether to keep activations in CPU memory between forward and backward."}
    )

    print_summary: bool = field(
        default=True, metadata={"help": "Whether a summary of the run is printed before the first step."}
    )
    log_completions: bool = field(
        default=False,
        metadata={
            "help": "Whether to print generated completions with their rewards and save them under "
            "`output_dir/completions`."
        },
    )
    num_completions_to_print: int | None = field(
        default=4, metadata={"help": "Number of completions to print at a time."}
    )
    log_unique_prompts: bool = field(
        default=False, metadata={"help": "Whether only one completion of each prompt is printed and saved."}
    )

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        # Python's own error would name the first unknown setting only, and no reason.
        parameters = check_arguments(cls, kwargs, cls.refused_settings, "settings")
        config = super().__new__(cls)
        config.given = dict(zip(list(parameters)[1:], args, strict=False)) | kwargs
        return config

    def __post_init__(self) -> None:
        if not accelerator_count():
            self.use_cpu = True
        self.bf16 = self._read_bf16()
        if self.use_cpu:
            self._set_for_cpu()
        self._check_inherited()
        if getattr(self, "activation_checkpointing", False) is None:
            # transformers' new name for TRL's setting; it would warn about the default too.
            self.activation_checkpointing = self.gradient_checkpointing
        undecided = self.greater_is_better is None  # type: ignore[has-type]
        super().__post_init__()
        if undecided and self.metric_for_best_model:
            self.greater_is_better = not smaller_is_better(self.metric_for_best_model)
        check_restricted(self, self.restricted_settings)
        if self.use_liger_kernel:
            given: Any = self.liger_kernel_config  # type: ignore[has-type]
            self.liger_kernel_config = liger_config(given if isinstance(given, dict) else None)
        for name in self.none_is_zero:
            if getattr(self, name) is None:
                setattr(self, name, 0)
        for name, each in self._own().items():
            if getattr(self, name) is None and each.default == "":  # TRL's default for such texts
                setattr(self, name, "")
        self.check_reward_settings()
        check_fields(self, self._own())
        self.columns = parse_columns(self.columns)
        self._at_least("max_length", 0)
        self.pad_to_multiple_of = self._padding_multiple()
        self._at_least("pad_to_multiple_of", 0)
        self._at_least("num_generations", 1)
        self._at_least("num_generations_eval", 0)
        self._at_least("generation_batch_size", 0)
        self._at_least("max_completion_length", 1)
        self._at_least("top_k", 0)
        self._check_choices()
        if self.temperature <= 0:
            raise ValueError(
                f"`temperature` must be positive, got {self.temperature}: completions of a prompt are compared with "
                "one another, so they have to differ."
            )
        settings = self.generation_settings()  # checks the rest, before the first completions are generated
        if not getattr(self, "use_vllm", False):
            settings.check_generation_kwargs()
        if not self.shuffle_dataset:
            self._set_sequential()
        for note in notes_on(self, self.other_meanings):
            if self.process_index == 0:
                logger.warning_once(note)

    def _set_sequential(self) -> None:
        """Set the order of rows that `shuffle_dataset: false` asks for."""
        strategy = str(self.train_sampling_strategy)  # type: ignore[has-type]
        if strategy not in ("random", "sequential"):
            raise ValueError(
                f"`shuffle_dataset: false` keeps rows in the order of the dataset, and `train_sampling_strategy: "
                f"{strategy}` has another one: leave out one of the two."
            )
        self.train_sampling_strategy = "sequential"

    def _refuse_idle(self, names: Iterable[str], why: str) -> None:
        """
        Raise a `ValueError` for a setting that has no effect beside the others, unless it is at its default.

        Args:
            names (`Iterable[str]`): The settings.
            why (`str`): The reason, which follows "has no effect".
        """
        for name in names:
            value = getattr(self, name)
            if value != getattr(type(self), name):
                raise ValueError(f"`{name}: {value}` has no effect {why}: remove it.")

    def _set_for_cpu(self) -> None:
        """Switch off what a CPU cannot do."""
        self.activation_offloading = False  # activations are in CPU memory; TRL's context manager fails there
        if self.fp16:  # type: ignore[has-type]
            logger.warning_once("`fp16` has no effect on a CPU: training computes in the dtype of the weights.")
            self.fp16 = False  # accelerate would ignore it without a word

    def _check_inherited(self) -> None:
        """What transformers does not check, or names no setting in its error about."""
        # transformers computes with these numbers; it accepts `None` for more than it declares.
        numbers = [name for name in number_fields(BaseConfig) if getattr(self, name) is not None]
        check_fields(self, [name for name in numbers if name != "bf16"])
        for name in numbers:
            if name in _LEAST:
                self._at_least(name, _LEAST[name])
        for name in self._VALID_DICT_FIELDS:
            value = getattr(self, name)
            own = name not in BaseConfig._VALID_DICT_FIELDS  # others may be a file
            if isinstance(value, str) and (value.startswith("{") or (own and value)):
                setattr(self, name, as_mapping(name, value))
        if self.deepspeed:  # type: ignore[has-type]
            require_package("deepspeed", DEEPSPEED)

    def generation_settings(self, mode: str = "train") -> GenerationSettings:
        """The settings for [`~trl_ext.generation.generate.generate`], in training or, for `"eval"`, in evaluations."""
        return GenerationSettings.of(self, num_generations=self.completions_per_prompt(mode))

    def completions_per_prompt(self, mode: str = "train") -> int:
        """Number of completions that are generated for a prompt in training or, for `"eval"`, in evaluations."""
        return (self.num_generations_eval if mode == "eval" else 0) or self.num_generations

    def set_resample_steps(self) -> None:
        """
        Set `resample_steps` from `steps_per_generation`, TRL's setting, which counts micro-batches.

        Raises:
            `ValueError`: One of them is out of range, or they contradict each other.
        """
        config: Any = self
        self._at_least("resample_steps", 0)
        self._at_least("steps_per_generation", 0)
        if not config.steps_per_generation:
            return
        steps, rest = divmod(config.steps_per_generation, self.gradient_accumulation_steps)
        if rest:
            raise ValueError(
                f"`steps_per_generation` ({config.steps_per_generation}) must be a multiple of "
                f"`gradient_accumulation_steps` ({self.gradient_accumulation_steps}): completions are generated for "
                "complete optimizer steps."
            )
        if config.resample_steps not in (0, steps):
            raise ValueError(
                f"`resample_steps` ({config.resample_steps}) and `steps_per_generation` "
                f"({config.steps_per_generation}, which is {steps} optimizer steps) differ: set one of them."
            )
        config.resample_steps = steps

    def _read_bf16(self) -> bool | None:
        """`bf16` as it is for this machine; `None` leaves it to TRL. A command line passes it as text."""
        value = true_false_or_auto("bf16", self.bf16)
        if value is None:
            return False if self.use_cpu else None  # exact numbers on a CPU
        if value == "auto":
            return self._cpu_bf16() if self.use_cpu else None
        if value and self.use_cpu:
            remedy = "`bf16: auto` chooses float32 here, and `cast_for_generation` is off with either."
            warn_if_slow("bf16: true", torch.bfloat16, CPU, remedy)
        return value  # type: ignore[no-any-return]

    def _cpu_bf16(self) -> bool:
        """What `bf16: auto` is on a CPU."""
        if computes_fast(torch.bfloat16, CPU):
            return not self.fp16
        logger.warning_once(f"`bf16: auto` is float32 here: {slow_reason(torch.bfloat16)}.")
        return False

    def _padding_multiple(self) -> int:
        """`pad_to_multiple_of` as a number. A command line passes it as text."""
        value = self.pad_to_multiple_of
        if value == "auto":
            return 128 if self.device.type == "neuron" else 0
        if isinstance(value, int):
            return value
        if str(value).lower() in ("none", "null"):
            return 0
        if not str(value).isdecimal():
            raise ValueError(f"`pad_to_multiple_of` must be a whole number or 'auto', got {value!r}.")
        return int(str(value))

    def _check_choices(self) -> None:
        """Raise a `ValueError` for a setting that is not one of the choices of its field."""
        for name, each in self._own().items():
            choices = each.metadata.get("choices", ())
            value = getattr(self, name)
            if choices and not all(item in choices for item in (value if isinstance(value, list) else [value])):
                raise ValueError(f"`{name}` must be one of {', '.join(map(str, choices))}, got {value!r}.")
        if self.truncation_mode == "keep_end":
            raise ValueError(
                "`truncation_mode` 'keep_end' is not supported: completions of one prompt have different lengths, so "
                "each would lose another part of the prompt, and TRL removes it in 2.0. Use 'keep_start', and shorten "
                "long prompts yourself (`max_length` drops them)."
            )

    def _own(self) -> dict[str, Field]:
        """The fields that neither transformers nor TRL has."""
        upstream = {each.name for each in fields(BaseConfig)}
        return {each.name: each for each in fields(self) if each.name not in upstream}

    def _at_least(self, name: str, least: float) -> None:
        check_at_least(name, getattr(self, name), least)
