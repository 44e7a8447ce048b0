# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Settings that mean the same for every method, on top of TRL's base config."""

from dataclasses import Field, dataclass, field, fields
from typing import Any, ClassVar

import torch

from trl_ext.generation_settings import GenerationSettings, setting
from trl_ext.upstream import BaseConfig
from trl_ext.validation import check_at_least, check_fields, number_fields


NAN_ACTIONS = ("stop", "skip")


@dataclass
class ExtConfig(BaseConfig):
    r"""
    Base configuration of the methods of trl-ext.

    Only the parameters that trl-ext adds or re-defaults are listed; all of [`~transformers.TrainingArguments`] is
    there. Wherever a number switches something off, it is `0`.

    Parameters:
        > Parameters that control the model

        model_init_kwargs (`dict[str, Any]` or `str`, *optional*):
            Keyword arguments for `from_pretrained`, used when `model` is a string.
        trust_remote_code (`bool`, *optional*, defaults to `False`):
            Whether to run code that comes with a model or tokenizer on the Hub.
        disable_dropout (`bool`, *optional*, defaults to `True`):
            Whether to switch dropout off, so that log-probabilities are those of the model that is used later.

        > Parameters that control the data

        dataset_num_proc (`int`, *optional*):
            Processes that tokenise the data set.
        chat_template_path (`str`, *optional*):
            Jinja file, or directory or Hub id of a tokenizer, whose chat template is used instead of the tokenizer's.
        max_length (`int`, *optional*, defaults to `1024`):
            Longest prompt plus completion, in tokens. A longer completion loses its end; a row whose prompt alone is
            this long is dropped, and the number of dropped rows is logged. `0` means no limit.
        pad_to_multiple_of (`int`, *optional*, defaults to `0`):
            Pad rows to a multiple of this length (`0`: no rounding).

        > Parameters that control generation (TRL's names; used wherever a method samples)

        num_generations (`int`, *optional*, defaults to `4`):
            Completions sampled for a prompt.
        generation_batch_size (`int`, *optional*, defaults to `0`):
            Sequences that are generated at once on a device (`0`: 64 on CPU, 128 elsewhere).
        ds3_gather_for_generation (`bool`, *optional*, defaults to `True`):
            Whether a model in pieces (DeepSpeed ZeRO-3, and FSDP2 as well) is whole on each device while it samples.
            `False`: its layers are fetched for each token, for a model that does not fit a device.
        cast_for_generation (`bool`, *optional*, defaults to `False`):
            Whether to sample, in training with `bf16` and float32 weights, with a copy of the model in bfloat16.
            Autocast converts every weight again for every token; the copy is faster (about twice on a CPU that
            computes in bfloat16) and costs the memory of a copy of the weights. Not under FSDP or DeepSpeed.
        max_completion_length (`int`, *optional*, defaults to `256`):
            Longest sampled completion, in tokens.
        temperature (`float`, *optional*, defaults to `1.0`):
            Sampling temperature.
        top_k (`int`, *optional*, defaults to `0`):
            Sample among the k likeliest tokens (`0`: all).
        top_p (`float`, *optional*, defaults to `1.0`):
            Sample among the likeliest tokens whose probabilities sum to this.
        min_p (`float`, *optional*, defaults to `0.0`):
            Sample among tokens at least this probable relative to the likeliest (`0`: off).
        repetition_penalty (`float`, *optional*, defaults to `1.0`):
            Divides the logits of tokens that have occurred.
        cuda_graphs (`str`, *optional*, defaults to `"auto"`):
            Whether a sampled token is one replay of a CUDA graph, in a cache of fixed size: `"auto"` on a GPU where
            that can be, `"always"` (an error says why it cannot), `"never"`. The distribution is the same.
        generation_kwargs (`dict[str, Any]` or `str`, *optional*):
            Further keyword arguments for [`~transformers.GenerationConfig`].

        > Parameters that control rewards

        reward_weights (`list[float]`, *optional*):
            Weight of each reward function. If not set, every weight is `1.0`.
        nan_rewards (`str`, *optional*, defaults to `"skip"`):
            What to do if a reward function returns NaN in training or evaluation (`None` says that it does not apply):
            `"skip"` leaves that reward out, as TRL does, with a warning that names function, step and rows; `"stop"`
            is an error.

        > Parameters that control training

        nan_loss (`str`, *optional*, defaults to `"stop"`):
            What to do if a loss or the gradient of a step is NaN or infinite: `"stop"` with an error that names step
            and rows, or `"skip"` the optimizer step with a warning and count it (`skipped_steps`). Gradients are left
            to the scaler of the loss in fp16 and to DeepSpeed's engine, with which steps cannot be skipped.

        activation_offloading (`bool`, *optional*, defaults to `False`):
            Whether to keep activations in CPU memory between forward and backward.

        > Parameters that control logging

        log_completions (`bool`, *optional*, defaults to `False`):
            Whether to print sampled completions with their rewards and save them under `output_dir/completions`.
        num_completions_to_print (`int`, *optional*, defaults to `4`):
            Completions printed at a time (`None`, TRL's default: all).

    > [!NOTE]
    > Without an accelerator, `use_cpu` is set and `bf16` defaults to `False` (TRL's configs raise there).
    """

    # How scripts and recipes written for TRL switch these off.
    none_is_zero: ClassVar[tuple[str, ...]] = (
        "max_length",
        "pad_to_multiple_of",
        "generation_batch_size",
        "top_k",
        "min_p",
    )

    _VALID_DICT_FIELDS: ClassVar[list[str]] = [
        *BaseConfig._VALID_DICT_FIELDS,
        "model_init_kwargs",
        "generation_kwargs",
    ]

    model_init_kwargs: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Keyword arguments for `from_pretrained`, used when `model` is a string."}
    )
    trust_remote_code: bool = field(
        default=False, metadata={"help": "Whether to run code that comes with a model or tokenizer on the Hub."}
    )
    disable_dropout: bool = field(default=True, metadata={"help": "Whether to switch dropout off."})

    dataset_num_proc: int | None = field(default=None, metadata={"help": "Processes that tokenise the data set."})
    chat_template_path: str | None = field(
        default=None,
        metadata={
            "help": "Jinja file, or directory or Hub id of a tokenizer, whose chat template is used instead of the "
            "tokenizer's."
        },
    )
    max_length: int = field(
        default=1024,
        metadata={
            "help": "Longest prompt plus completion, in tokens. A longer completion loses its end; a row whose prompt "
            "alone is this long is dropped. 0 means no limit."
        },
    )
    pad_to_multiple_of: int = field(
        default=0, metadata={"help": "Pad rows to a multiple of this length. 0 means no rounding."}
    )

    num_generations: int = field(default=4, metadata={"help": "Completions sampled for a prompt."})
    generation_batch_size: int = field(
        default=0,
        metadata={"help": "Sequences that are generated at once on a device. 0 means 64 on CPU, 128 elsewhere."},
    )
    ds3_gather_for_generation: bool = field(
        default=True,
        metadata={
            "help": "Whether a model in pieces (DeepSpeed ZeRO-3, FSDP2) is whole on each device while it samples. "
            "Switch it off for a model that does not fit a device; sampling is then slow."
        },
    )
    cast_for_generation: bool = field(
        default=False,
        metadata={
            "help": "Whether to sample, in training with bf16 and float32 weights, with a copy of the model in "
            "bfloat16: faster, for the memory of a copy."
        },
    )
    max_completion_length: int = field(default=256, metadata={"help": "Longest sampled completion, in tokens."})
    temperature: float = setting("temperature")
    top_k: int = setting("top_k")
    top_p: float = setting("top_p")
    min_p: float = setting("min_p")
    repetition_penalty: float = setting("repetition_penalty")
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
            "optimizer step. Of gradients, fp16's scaler and DeepSpeed's engine take care themselves.",
            "choices": list(NAN_ACTIONS),
        },
    )
    activation_offloading: bool = field(
        default=False, metadata={"help": "Whether to keep activations in CPU memory between forward and backward."}
    )

    log_completions: bool = field(
        default=False,
        metadata={
            "help": "Whether to print sampled completions with their rewards and save them under "
            "`output_dir/completions`."
        },
    )
    num_completions_to_print: int | None = field(default=4, metadata={"help": "Completions printed at a time."})

    def __post_init__(self) -> None:
        if not torch.accelerator.is_available():
            self.use_cpu = True
        if self.use_cpu and self.bf16 is None:  # type: ignore[has-type]
            self.bf16 = False  # exact numbers; bf16=True is honoured and pays where the CPU computes in bf16
        if self.use_cpu:
            self.activation_offloading = False  # they are in CPU memory already; TRL's context manager fails there
        # transformers compares and multiplies what it is given; `None` it understands in more places than it declares.
        check_fields(self, [name for name in number_fields(BaseConfig) if getattr(self, name) is not None])
        super().__post_init__()
        for name in self.none_is_zero:
            if getattr(self, name) is None:
                setattr(self, name, 0)
        for name, each in self._own().items():
            if getattr(self, name) is None and each.default == "":  # TRL's way to leave a text out
                setattr(self, name, "")
        check_fields(self, self._own())
        self._at_least("max_length", 0)
        self._at_least("pad_to_multiple_of", 0)
        self._at_least("num_generations", 1)
        self._at_least("generation_batch_size", 0)
        self._at_least("max_completion_length", 1)
        self._at_least("top_k", 0)
        self._check_choices()
        if self.temperature <= 0:
            raise ValueError(
                f"`temperature` must be positive, got {self.temperature}: completions are compared with one "
                "another, so they have to differ."
            )
        settings = self.generation_settings()  # checks the rest now, rather than when the first completions are drawn
        if not getattr(self, "use_vllm", False):
            settings.check_generation_kwargs()

    def generation_settings(self) -> GenerationSettings:
        """The settings that [`~trl_ext.generation.generate.generate`] takes."""
        return GenerationSettings.of(self)

    def _check_choices(self) -> None:
        """That every setting of ours that is a choice is one of those that its field names."""
        for name, each in self._own().items():
            choices = each.metadata.get("choices", ())
            value = getattr(self, name)
            if choices and not all(item in choices for item in (value if isinstance(value, list) else [value])):
                raise ValueError(f"`{name}` must be one of {', '.join(map(str, choices))}, got {value!r}.")

    def _own(self) -> dict[str, Field]:
        """The fields that transformers and TRL do not have."""
        upstream = {each.name for each in fields(BaseConfig)}
        return {each.name: each for each in fields(self) if each.name not in upstream}

    def _at_least(self, name: str, least: float) -> None:
        check_at_least(name, getattr(self, name), least)
