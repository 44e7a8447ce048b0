# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Flags that several commands share: prompts, rewards, sampling, output, model loading."""

import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl import ModelConfig

from trl_ext.data.chat_template import use_chat_template
from trl_ext.data.dataset_settings import COLUMNS, DATASET_FORMAT
from trl_ext.data.load import FILE_TYPES_TEXT
from trl_ext.data.prompts import has_system_prompt
from trl_ext.data.resumable_file import ResumableFile, file_fingerprint, rows_fingerprint, weights_fingerprint
from trl_ext.devices import default_device
from trl_ext.generation_settings import GenerationSettings, setting
from trl_ext.inference.policy import Policy
from trl_ext.models.load import load_model, quantization_config_from
from trl_ext.models.properties import is_quantized
from trl_ext.models.tokenizers import load_tokenizer, use_eos_token
from trl_ext.validation import as_mapping, check_at_least


@dataclass
class DatasetArguments:
    """The dataset that a command reads."""

    dataset_name: str | None = field(
        default=None,
        metadata={"help": f"Dataset with prompts (text or messages): Hub id, directory, or a {FILE_TYPES_TEXT} file."},
    )
    columns: dict[str, str] | str | None = field(default=None, metadata=COLUMNS)
    dataset_format: str = field(default="auto", metadata=DATASET_FORMAT)
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of a dataset on the Hub."})
    max_num_prompts: int = field(default=0, metadata={"help": "Use only the first prompts, this many. 0 means all."})


@dataclass
class PromptArguments(DatasetArguments):
    """The dataset that the prompts come from, and how they are rendered."""

    chat_template_kwargs: dict[str, Any] | str | None = field(
        default=None,
        metadata={
            "help": "Arguments of the chat template for all prompts, such as '{\"enable_thinking\": false}'. The "
            "dataset's column of this name wins."
        },
    )

    @property
    def template_kwargs(self) -> dict[str, Any]:
        """`chat_template_kwargs` as a dictionary. A command line passes it as JSON."""
        return as_mapping("chat_template_kwargs", self.chat_template_kwargs or None) or {}

    def check_prompts(self) -> None:
        """Raise a `ValueError` if `chat_template_kwargs` is no mapping."""
        as_mapping("chat_template_kwargs", self.chat_template_kwargs or None)


@dataclass
class TypedPromptArguments(PromptArguments):
    """Prompts that are typed, in place of a dataset, and how text becomes a message."""

    prompt: list[str] | None = field(default=None, metadata={"help": "Prompts, in place of a dataset."})
    system_prompt: str | None = field(
        default=None, metadata={"help": "System message before each conversation that has none of its own."}
    )
    apply_chat_template: bool = field(
        default=True,
        metadata={
            "help": "Whether text is a user's message if the tokenizer has a chat template. Otherwise the model "
            "continues it."
        },
    )

    def check_prompts(self) -> None:
        """Raise a `ValueError` for prompts in two places, an empty prompt, or what [`PromptArguments`] refuses."""
        super().check_prompts()
        if self.prompt is not None and self.dataset_name is not None:
            raise ValueError("prompts come from --prompt or from --dataset_name, not from both.")
        for index, prompt in enumerate(self.prompt or []):
            if not prompt:
                raise ValueError(f"prompt {index} is empty: there is nothing to complete.")

    def opening_messages(self, tokenizer: PreTrainedTokenizerBase) -> list[dict[str, str]] | None:
        """The messages that a conversation begins with; `None` if prompts are text that the model continues."""
        chat = self.apply_chat_template and tokenizer.chat_template is not None
        if self.system_prompt is None:
            return [] if chat else None
        if not chat:
            raise ValueError(
                "system_prompt needs a chat template: the tokenizer has none, or apply_chat_template is off."
            )
        return [{"role": "system", "content": self.system_prompt}]


def as_message(row: dict[str, Any], opening: list[dict[str, str]] | None) -> dict[str, Any]:
    """
    The row with its prompt after the messages of the opening, text as the user's message; unchanged if the opening is
    `None`.
    """
    if opening is None or has_system_prompt(row["prompt"]):
        return row
    text = isinstance(row["prompt"], str)
    return row | {"prompt": [*opening, *([{"role": "user", "content": row["prompt"]}] if text else row["prompt"])]}


@dataclass
class RewardArguments:
    """The rewards that score completions."""

    reward_model_name_or_path: str | None = field(
        default=None,
        metadata={
            "help": "Reward model: a sequence classifier by Hub id or directory, or the address of a reward server."
        },
    )
    reward_funcs: list[str] | None = field(
        default=None,
        metadata={
            "help": "Reward functions: names of TRL's own (e.g. `think_format_reward`), dotted paths (e.g. "
            "`my_lib.rewards.my_reward`) or files (`my_rewards.py:my_reward`), sequence classifiers by Hub id or "
            "directory, and addresses of reward "
            "servers (OpenRLHF's `http://host:5000/get_reward`, vLLM's `/classify` and `/score`). Functions receive "
            "the dataset's other columns."
        },
    )

    @property
    def rewards(self) -> list[str]:
        """All rewards that are named, the reward model first, which is the order of their weights."""
        return [*filter(None, [self.reward_model_name_or_path]), *(self.reward_funcs or [])]


@dataclass
class SamplingArguments:
    """How completions are sampled."""

    num_generations: int = field(default=1, metadata={"help": "Completions per prompt."})
    max_completion_length: int = field(default=256, metadata={"help": "Longest completion, in tokens."})
    temperature: float = setting("temperature")
    top_k: int = setting("top_k")
    top_p: float = setting("top_p")
    min_p: float = setting("min_p")
    repetition_penalty: float = setting("repetition_penalty")
    cuda_graphs: str = setting("cuda_graphs")
    seed: int = field(default=42, metadata={"help": "Seed of the sampling."})
    generation_batch_size: int = field(
        default=0,
        metadata={
            "help": "Sequences to generate or score at once. 0 means 64 on CPU, 128 elsewhere, and the number of "
            "parallel requests if a server generates."
        },
    )

    def settings(self, **changes: Any) -> GenerationSettings:
        """The sampling settings among these arguments; `changes` win."""
        return GenerationSettings.of(self, **changes)

    def check_counts(self, **least: int) -> None:
        """Raise a `ValueError` that names a count which is below its least value, given by the count's name."""
        for name, value in least.items():
            check_at_least(name, getattr(self, name), value)


@dataclass
class OutputArguments:
    """The file that rows are written to."""

    output_file: str | None = field(
        default=None, metadata={"help": "Output file: .jsonl or .parquet. An interrupted run is resumed."}
    )
    overwrite_output: bool = field(default=False, metadata={"help": "Whether to start over if the file exists."})

    def check_output(self, dataset_name: str | None) -> None:
        """Raise a `ValueError` if the output would replace the dataset that is read."""
        if self.output_file and dataset_name and os.path.realpath(self.output_file) == os.path.realpath(dataset_name):
            raise ValueError(f"output_file is the dataset itself, {dataset_name!r}: choose another name.")

    def open_output(
        self, rows: Iterable[dict[str, Any]], models: Iterable[str], further_settings: dict[str, Any]
    ) -> ResumableFile:
        """
        Open the output file. A run can resume an earlier one only if everything that the rows depend on is the same.

        Args:
            rows (`Iterable[dict[str, Any]]`): The dataset.
            models (`Iterable[str]`): Names of the models; weights of those in directories are compared, and the
                contents of those that are files, such as guide files.
            further_settings (`dict[str, Any]`): Settings beside the fields of this dataclass.

        Raises:
            `ValueError` or `OSError`: See [`~trl_ext.data.resumable_file.ResumableFile`].
        """
        settings = asdict(self) | further_settings
        # Neither where rows are written nor how a server is called changes a row.
        for name in ("output_file", "overwrite_output", "reward_batch_size", "reward_server_kwargs"):
            settings.pop(name, None)
        settings["contents of the dataset"] = rows_fingerprint(rows)
        for name in filter(None, [*models, settings.get("chat_template_path")]):
            if (fingerprint := weights_fingerprint(name)) is not None:
                settings[f"weights of {name}"] = fingerprint
            elif (fingerprint := file_fingerprint(name)) is not None:
                settings[f"contents of {name}"] = fingerprint
        return ResumableFile(str(self.output_file), settings, overwrite=self.overwrite_output)


@dataclass
class LoadingArguments:
    """How all models of the command are loaded."""

    refused_settings: ClassVar[dict[str, str]] = {"torch_dtype": "called `dtype` now"}

    model_revision: str = field(
        default="main", metadata={"help": "Branch, tag or commit of the models under --model_name_or_path."}
    )
    dtype: str = field(
        default="auto",
        metadata={
            "help": "Data type of the weights and the arithmetic, except of reward models; `auto` is that of the "
            "checkpoint, or float32 on a processor without instructions for it.",
            "choices": ["auto", "bfloat16", "float16", "float32"],
        },
    )
    attn_implementation: str | None = field(default=None, metadata={"help": "Attention implementation to use."})
    trust_remote_code: bool = field(
        default=False, metadata={"help": "Whether to run code that comes with a model or tokenizer on the Hub."}
    )
    load_in_4bit: bool = field(
        default=False,
        metadata={"help": "Whether to quantize the models to 4 bits, except perplexity and reward models."},
    )
    load_in_8bit: bool = field(default=False, metadata={"help": "The same with 8 bits."})
    bnb_4bit_quant_type: str = field(
        default="nf4", metadata={"help": "Type of 4-bit quantization.", "choices": ["nf4", "fp4"]}
    )

    chat_template_path: str | None = field(
        default=None,
        metadata={
            "help": "Jinja file with a chat template, or directory or Hub id of a tokenizer that has one, to use "
            "instead of the models' own."
        },
    )
    eos_token: str | None = field(
        default=None,
        metadata={"help": "Token that ends an answer, instead of the tokenizer's end-of-sequence token."},
    )

    def load_tokenizer(self, name: str, revision: str | None = None) -> PreTrainedTokenizerBase:
        """Load the tokenizer of a model, with the chat template and the end-of-sequence token of these arguments."""
        tokenizer = load_tokenizer(name, revision=revision, trust_remote_code=self.trust_remote_code)
        if self.eos_token:
            use_eos_token(tokenizer, self.eos_token)
        return self.with_template(tokenizer)

    def with_template(self, tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
        """The tokenizer with the chat template of these arguments, if they have one."""
        if self.chat_template_path:
            use_chat_template(tokenizer, self.chat_template_path)
        return tokenizer

    def served(self, policy: Policy) -> Policy:
        """
        The policy of a server's model, with the chat template of these arguments.

        Raises:
            `ValueError`: There is an `eos_token`, which is the server's to choose.
        """
        if self.eos_token:
            raise ValueError("eos_token has no effect on a server, which ends answers itself: remove it.")
        self.with_template(policy.tokenizer)
        return policy

    def load(self, name: str, revision: str | None = None, quantize: bool = True) -> PreTrainedModel:
        """Load a causal language model in evaluation mode, on the default device unless it has a device map."""
        config = ModelConfig(
            load_in_4bit=self.load_in_4bit,
            load_in_8bit=self.load_in_8bit,
            bnb_4bit_quant_type=self.bnb_4bit_quant_type,
        )
        kwargs: dict[str, Any] = {"dtype": self.dtype}
        if self.attn_implementation is not None:
            kwargs["attn_implementation"] = self.attn_implementation
        model = load_model(
            name,
            quantization_config=quantization_config_from(config) if quantize else None,
            revision=revision,
            trust_remote_code=self.trust_remote_code,
            **kwargs,
        )
        if not is_quantized(model) and getattr(model, "hf_device_map", None) is None:
            model = model.to(default_device())
        return model.eval()  # type: ignore[no-any-return]
