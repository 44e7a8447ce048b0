# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
Policies: everything that generates completions for prompts, as evaluation and the commands see it.

[`Policy`] is a name, a tokenizer and a few functions. [`model_policy`] makes one of a transformers model; [`Decoding`]
makes policies of a frozen model and the value model or proxy that a method trained to guide it.
"""

import contextlib
import inspect
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol, runtime_checkable

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from trl_ext.data.chat_template import template_kwargs
from trl_ext.data.completion import Completion
from trl_ext.data.row_errors import located
from trl_ext.data.schema import DataError, where
from trl_ext.data.token_ids import check_token_ids
from trl_ext.data.tokenization import TEMPLATE_REMEDY, encode_prompt
from trl_ext.decoding.scheduled_rows import GuidedTokens
from trl_ext.generation.generate import generate
from trl_ext.generation.observer import Observer
from trl_ext.generation.streaming import streamed
from trl_ext.generation_settings import GenerationSettings, pad_token_id
from trl_ext.logprobs.logprobs import LogProbs, completion_logps
from trl_ext.models.adapters import changes_base
from trl_ext.models.load import adapter_disabled
from trl_ext.models.properties import context_length, embedding_rows
from trl_ext.rewards.functions import Reward
from trl_ext.rewards.scoring import ScoredCompletion


@dataclass(frozen=True)
class GuideWeights:
    """
    The weights of what guides a policy, which may change between two completions.

    Parameters:
        values (`dict[str, float]`):
            The weight of each reward or other part of the guide, by name.
        change (`Callable`):
            `(values) -> policy`: the same policy with other weights. It shares the loaded models. Raises a
            `ValueError` if a name does not exist or a weight is out of range.
        about (`dict[str, str]`, *optional*):
            What to know about a name to choose its weight, such as the mean and deviation of its reward.
    """

    values: dict[str, float]
    change: "Callable[[dict[str, float]], Policy]"
    about: dict[str, str] = field(default_factory=dict)


class MessageIds(list[int]):
    """
    Token ids of a conversation that keep its messages, for policies that send messages to a server.

    Args:
        ids (`Sequence[int]`): The token ids.
        messages (`list[dict]`): The messages.
        template (`dict[str, Any]`): Arguments of the chat template.
    """

    def __init__(self, ids: Sequence[int], messages: list[dict[str, Any]], template: dict[str, Any]) -> None:
        super().__init__(ids)
        self.messages, self.template = messages, template


@dataclass(frozen=True)
class Policy:
    """
    Generates completions for prompts.

    Parameters:
        name (`str`):
            Name in tables, errors and the column `sources`.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Encodes prompts to the token ids that the functions take.
        generate (`Callable`):
            `(prompt_ids, settings) -> completions`: for each prompt a list of
            [`~trl_ext.data.completion.Completion`]s. Samples with torch's global generator. If it has an argument
            `observer`, a [`~trl_ext.generation.observer.Observer`] can see each token and end completions early.
        logps (`Callable`, *optional*):
            `(prompt_ids, completion_ids) -> logps`: for each completion of each prompt the log-probabilities of its
            tokens, in nats, a tensor of shape `(T,)`, under the distribution that `generate` samples from at
            temperature 1. Without it, evaluation reports no KL.
        stream (`Callable`, *optional*):
            `(prompt_ids, settings, show) -> completion`: generates one completion of one prompt, from the same
            distribution as `generate`, and calls `show` with each new piece of its text. The pieces add up to the
            text. The settings must ask for one completion. Without it, a completion is shown when it is complete.
        scored (`Callable`, *optional*):
            `(completions, rewards) -> scored completions`: what the policy itself has computed with these rewards for
            completions that it has returned, as [`~trl_ext.rewards.scoring.score_completions`] would, or `None`. They
            are then not scored again.
        extras (`dict[str, Any]`, *optional*):
            Values for the report beside the metrics: the settings that distinguish this policy from the others of its
            `series`, such as `{"beta": 2.0}`. They must be serializable as JSON.
        kl_bound (`float`, *optional*):
            Upper bound of the KL to the base model in nats per completion, for a policy without `logps`.
        own_kl (`str`, *optional*, defaults to `""`):
            What the mean over completions of their `kl` is, for a policy without `logps` that computes it while it
            generates: `"exact"` is the KL to the model that it guides, `"bound"` an upper bound of it.
        series (`str`, *optional*, defaults to `""`):
            Line of the reward-KL frontier that the policy is a point of. By default it is a line of its own.
        method (`str`, *optional*, defaults to `""`):
            Method that made the policy. Series of one method have one colour in plots.
        truncation (`str`, *optional*, defaults to `""`):
            Tokens that the policy itself can never generate, whatever the generation settings, such as `"top-k 20"`
            for all but the 20 likeliest. They count in its KL, and legends name them.
        start (`str`, *optional*, defaults to `""`):
            Name of the policy that it was before training, if that is not the base model: the start of its line.
        context (`int`, *optional*, defaults to `0`):
            Context length: the maximum number of tokens of a prompt and its completion. `0` means not known.
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`], *optional*):
            The model that generates, for a [`Decoding`] that guides it. `None` if a server has it.
        weights ([`GuideWeights`], *optional*):
            The weights of what guides the policy, for `trl-ext chat`.
        guided ([`~trl_ext.decoding.scheduled_rows.GuidedTokens`], *optional*):
            Counts the tokens that `generate` makes and those that are guided, for a policy that is guided at some of
            them. Padding after a stop string counts too.
        takes_messages (`bool`, *optional*, defaults to `False`):
            Whether `generate` needs the messages of a conversation: [`encode`] returns [`MessageIds`] then.
        shows_guidance (`bool`, *optional*, defaults to `False`):
            Whether an observer with `top_candidates` sees what guides did at each token.
        sees_row (`Callable`, *optional*):
            `(row, prompt_ids) -> None`: called with each row before its prompt is passed to `generate` or `logps`, for
            a guide that reads other columns. Then prompts without a row are refused.
    """

    name: str
    tokenizer: PreTrainedTokenizerBase
    generate: Callable[..., list[list[Completion]]]
    logps: Callable[[list[list[int]], list[list[list[int]]]], list[list[torch.Tensor]]] | None = None
    stream: Callable[[list[int], GenerationSettings, Callable[[str], None]], Completion] | None = None
    scored: Callable[[list[list[Completion]], Sequence[Reward]], list[list[ScoredCompletion]] | None] | None = None
    extras: dict[str, Any] = field(default_factory=dict)
    kl_bound: float | None = None
    own_kl: str = ""
    series: str = ""
    method: str = ""
    truncation: str = ""
    start: str = ""
    context: int = 0
    model: PreTrainedModel | None = None
    weights: GuideWeights | None = None
    guided: GuidedTokens | None = None
    takes_messages: bool = False
    shows_guidance: bool = False
    sees_row: Callable[[dict[str, Any], list[int]], None] | None = None

    @property
    def observable(self) -> bool:
        """Whether `generate` has an argument `observer`."""
        return "observer" in inspect.signature(self.generate).parameters

    def encode(self, prompt: str | list[dict[str, Any]], **chat_template_kwargs: Any) -> list[int]:
        """
        Token ids of a prompt.

        Args:
            prompt (`str` or `list[dict]`): Text, or a list of messages.
            chat_template_kwargs: Arguments of the chat template, such as `tools`.

        Raises:
            [`~trl_ext.data.schema.DataError`]: The chat template refuses the prompt, there is none, a token has no
                embedding, or the policy needs the row that the prompt is from. The message names the policy.
        """
        if self.sees_row is not None:
            raise DataError(
                f"{self.name!r} reads other columns of a row than its prompt, and this is a prompt alone: use a "
                "command that reads a dataset with them."
            )
        return self._encode(prompt, chat_template_kwargs)

    def _encode(self, prompt: str | list[dict[str, Any]], chat_template_kwargs: dict[str, Any]) -> list[int]:
        with located(repr(self.name), TEMPLATE_REMEDY):
            ids = encode_prompt(self.tokenizer, prompt, **chat_template_kwargs)
            if self.model is not None:
                check_token_ids(ids, embedding_rows(self.model), self.tokenizer)
        if self.takes_messages and not isinstance(prompt, str):
            return MessageIds(ids, prompt, chat_template_kwargs)
        return ids

    def encode_row(self, row: dict[str, Any]) -> list[int]:
        """Token ids of a row's prompt. Its columns `tools` and `chat_template_kwargs` reach the chat template."""
        ids = self._encode(row["prompt"], template_kwargs(row))
        if self.sees_row is not None:
            self.sees_row(row, ids)
        return ids

    def encode_rows(self, rows: Sequence[dict[str, Any]], first: int = 0) -> list[list[int]]:
        """
        The same for several rows.

        Args:
            rows (`Sequence[dict]`): Rows with a `prompt`.
            first (`int`, *optional*, defaults to `0`): Number of the first row, for errors.
        """
        found = []
        for index, row in enumerate(rows, first):
            with located(where(index, column="prompt")):
                found.append(self.encode_row(row))
        return found

    def max_prompt_length(self, settings: GenerationSettings) -> int:
        """
        Maximum number of tokens of a prompt that leaves space for a completion of `max_completion_length`.

        Returns:
            `int`: `0` if the context length is not known.

        Raises:
            `ValueError`: `max_completion_length` fills the context length.
        """
        if not self.context:
            return 0
        if settings.max_completion_length >= self.context:
            raise ValueError(
                f"max_completion_length ({settings.max_completion_length}) leaves no tokens for a prompt: the context "
                f"length of {self.name!r} is {self.context}. Lower max_completion_length."
            )
        return self.context - settings.max_completion_length

    def check_context_length(
        self, prompt_ids: Sequence[Sequence[int]], settings: GenerationSettings, first: int = 0
    ) -> None:
        """
        Check that each prompt fits in the context length together with a completion of `max_completion_length`.

        Args:
            prompt_ids (`Sequence[Sequence[int]]`): Token ids of the prompts.
            settings ([`~trl_ext.generation_settings.GenerationSettings`]): Settings of the generation.
            first (`int`, *optional*, defaults to `0`): Number of the first prompt, for errors.

        Raises:
            [`~trl_ext.data.schema.DataError`]: A prompt is too long. The message has its number.
        """
        longest = settings.max_completion_length
        for number, ids in enumerate(prompt_ids, start=first):
            if self.context and len(ids) + longest > self.context:
                raise DataError(
                    f"prompt {number} has {len(ids)} tokens, but with max_completion_length ({longest}) the model's "
                    f"context length leaves {max(self.context - longest, 0)} for it: shorten either."
                )


@runtime_checkable
class Decoding(Protocol):
    """
    Guides the generation of a frozen model with the model that a method trained, such as a value model or a proxy.

    A method names its class in [`~trl_ext.Method`]'s `decoding`. The class is a dataclass whose fields all have
    defaults and a `help` in their metadata: they become flags of `trl-ext evaluate` and `trl-ext generate`, so their
    names must differ from the existing flags and from those of other methods. The first field is the main one: the
    others have no effect without it, and giving only them is an error. Making an instance must load nothing, and its
    module must import fast.

    A class may also have the property `served_at_once` and the method `served_tokenizer`; see [`served_at_once`]. If
    its fields need others than the main one, it has a class variable `needs` that maps their names to those of the
    fields without which they have no effect.

    Where an untrained guide differs from the frozen model alone, a class may have a method `untrained_policies`, with
    the arguments of `policies`: the policies before training, which `trl-ext evaluate` measures too. Those after
    training name them in `start`.
    """

    @property
    def active(self) -> bool:
        """Whether the user set the main field. If not, nothing else is called."""

    def check(self) -> None:
        """
        Called before anything is loaded.

        Raises:
            `ValueError`: A setting is out of its range, or two of them contradict each other. The message names the
                field and the remedy.
        """

    def policies(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        name: str,
        batch_size: int,
    ) -> list[Policy]:
        """
        Load the models that the settings name, and make one [`Policy`] per setting, such as one per weight.

        The policies share the loaded models. They are used one after the other, in any order, while `model` does not
        change. They have different names, their settings in `extras`, and the same `series`.

        Args:
            model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
                The frozen model, in evaluation mode.
            tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
                Its tokenizer.
            name (`str`):
                Name of the model in tables; the names of the policies start with it.
            batch_size (`int`):
                Sequences to generate or score at once.

        Raises:
            `ValueError` or `OSError`: Something cannot be loaded, or does not fit the model.
        """


def served_at_once(decodings: Iterable[Decoding]) -> int:
    """
    Number of completions that decodings generate at once with models of their own, such as a server's; 0 if they have
    none.

    A decoding that brings its model has a property of this name above 0. Its `policies` then gets `None` for the model
    and the tokenizer. Its method `served_tokenizer` loads the tokenizer alone, before any model.
    """
    return max((getattr(decoding, "served_at_once", 0) for decoding in decodings), default=0)


def model_policy(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    name: str = "model",
    batch_size: int = 64,
    use_adapter: bool = True,
) -> Policy:
    """
    The [`Policy`] of a transformers model.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            The model.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Its tokenizer.
        name (`str`, *optional*, defaults to `"model"`):
            Name in tables and errors.
        batch_size (`int`, *optional*, defaults to `64`):
            Sequences to generate or score at once.
        use_adapter (`bool`, *optional*, defaults to `True`):
            Whether the adapter of a [`~peft.PeftModel`] is active. With `False` the policy is its base model, which
            shares the weights.

    Raises:
        `ValueError`: The base model is asked for, and the adapter changed it when it was put on (PiSSA, OLoRA, ...).
    """
    if not use_adapter and any(map(changes_base, model.peft_config.values())):
        raise ValueError(
            "The model without its adapter is not the base model: the initialization of the adapter "
            "(`init_lora_weights`) changed it. Load the base model as well, and pass it (`base_model`)."
        )

    def adapter() -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext() if use_adapter else adapter_disabled(model)

    def sample(
        prompt_ids: list[list[int]], settings: GenerationSettings, *, observer: Observer | None = None
    ) -> list[list[Completion]]:
        with adapter():
            return generate(model, tokenizer, prompt_ids, settings, batch_size=batch_size, observer=observer)

    def logps(prompt_ids: list[list[int]], completion_ids: list[list[list[int]]]) -> list[list[torch.Tensor]]:
        pad = pad_token_id(tokenizer)
        # Separate rows use the same arithmetic for a model and its base; one completion per prompt shares nothing.
        rows = LogProbs(model, pad, shared_prefix="never")
        with adapter():
            return completion_logps(
                model, prompt_ids, completion_ids, pad_token_id=pad, batch_size=batch_size, log_probs=rows
            )

    return Policy(
        name=name,
        tokenizer=tokenizer,
        generate=sample,
        logps=logps,
        stream=partial(streamed, tokenizer, sample),
        context=context_length(model),
        model=model if use_adapter else None,
    )
