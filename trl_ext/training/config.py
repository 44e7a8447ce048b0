# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Settings that all methods share, on top of TRL's base config."""

from dataclasses import Field, dataclass, field, fields
from typing import Any, ClassVar

import torch

from trl_ext.generation_settings import GenerationSettings, setting
from trl_ext.rewards.settings import RewardSettings
from trl_ext.upstream import BaseConfig
from trl_ext.validation import check_at_least, check_fields, number_fields


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
        disable_dropout (`bool`, *optional*, defaults to `True`):
            Whether to disable dropout, so that log-probabilities equal those of the model in later use.

        > Parameters that control the data

        dataset_num_proc (`int`, *optional*):
            Number of processes that tokenize the dataset.
        chat_template_path (`str`, *optional*):
            Jinja file with a chat template, or directory or Hub id of a tokenizer that has one, to use instead of the
            tokenizer's own.
        max_length (`int`, *optional*, defaults to `1024`):
            Maximum length of prompt plus completion, in tokens. A longer completion is truncated; a row whose prompt
            alone is this long is dropped, and the number of dropped rows is logged. `0` means no limit.
        pad_to_multiple_of (`int`, *optional*, defaults to `0`):
            Pad rows to a multiple of this length (`0`: no rounding).

        > Parameters that control generation (TRL's names; for all completions that a method generates)

        num_generations (`int`, *optional*, defaults to `4`):
            Number of completions per prompt.
        generation_batch_size (`int`, *optional*, defaults to `0`):
            Number of sequences that a device generates at once (`0`: 64 on CPU, 128 elsewhere).
        ds3_gather_for_generation (`bool`, *optional*, defaults to `True`):
            Whether a sharded model (DeepSpeed ZeRO-3, FSDP2) is gathered on each device for generation. `False`
            fetches its layers for each token, for a model that does not fit on a device.
        cast_for_generation (`bool`, *optional*, defaults to `False`):
            Whether to generate, in training with `bf16` and float32 weights, with a copy of the model in bfloat16.
            Autocast converts every weight again for every token; the copy is faster (about twice on a CPU that
            computes in bfloat16) and takes the memory of a copy of the weights. Not under FSDP or DeepSpeed.
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

        log_completions (`bool`, *optional*, defaults to `False`):
            Whether to print generated completions with their rewards and save them under `output_dir/completions`.
        num_completions_to_print (`int`, *optional*, defaults to `4`):
            Number of completions to print at a time (`None`, TRL's default: all).

    > [!NOTE]
    > Without an accelerator, `use_cpu` is set and `bf16` defaults to `False` (TRL's configs raise an error).
    """

    # Settings that scripts and recipes written for TRL switch off with `None`.
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
    disable_dropout: bool = field(default=True, metadata={"help": "Whether to disable dropout."})

    dataset_num_proc: int | None = field(
        default=None, metadata={"help": "Number of processes that tokenize the dataset."}
    )
    chat_template_path: str | None = field(
        default=None,
        metadata={
            "help": "Jinja file with a chat template, or directory or Hub id of a tokenizer that has one, to use "
            "instead of the tokenizer's own."
        },
    )
    max_length: int = field(
        default=1024,
        metadata={
            "help": "Maximum length of prompt plus completion, in tokens. A longer completion is truncated; a row "
            "whose prompt alone is this long is dropped. 0 means no limit."
        },
    )
    pad_to_multiple_of: int = field(
        default=0, metadata={"help": "Pad rows to a multiple of this length. 0 means no rounding."}
    )

    num_generations: int = field(default=4, metadata={"help": "Number of completions per prompt."})
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

    def __post_init__(self) -> None:
        if not torch.accelerator.is_available():
            self.use_cpu = True
        if self.use_cpu and self.bf16 is None:  # type: ignore[has-type]
            self.bf16 = False  # exact numbers; bf16=True is respected, and is faster on CPUs that compute in bf16
        if self.use_cpu:
            self.activation_offloading = False  # activations are in CPU memory; TRL's context manager fails there
        # transformers computes with these without checking them; it accepts `None` for more than it declares.
        check_fields(self, [name for name in number_fields(BaseConfig) if getattr(self, name) is not None])
        super().__post_init__()
        for name in self.none_is_zero:
            if getattr(self, name) is None:
                setattr(self, name, 0)
        for name, each in self._own().items():
            if getattr(self, name) is None and each.default == "":  # TRL's default for such texts
                setattr(self, name, "")
        self.check_reward_settings()
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
                f"`temperature` must be positive, got {self.temperature}: completions of a prompt are compared with "
                "one another, so they have to differ."
            )
        settings = self.generation_settings()  # checks the rest, before the first completions are generated
        if not getattr(self, "use_vllm", False):
            settings.check_generation_kwargs()

    def generation_settings(self) -> GenerationSettings:
        """The settings for [`~trl_ext.generation.generate.generate`]."""
        return GenerationSettings.of(self)

    def _check_choices(self) -> None:
        """Raise a `ValueError` for a setting that is not one of the choices of its field."""
        for name, each in self._own().items():
            choices = each.metadata.get("choices", ())
            value = getattr(self, name)
            if choices and not all(item in choices for item in (value if isinstance(value, list) else [value])):
                raise ValueError(f"`{name}` must be one of {', '.join(map(str, choices))}, got {value!r}.")

    def _own(self) -> dict[str, Field]:
        """The fields that neither transformers nor TRL has."""
        upstream = {each.name for each in fields(BaseConfig)}
        return {each.name: each for each in fields(self) if each.name not in upstream}

    def _at_least(self, name: str, least: float) -> None:
        check_at_least(name, getattr(self, name), least)
