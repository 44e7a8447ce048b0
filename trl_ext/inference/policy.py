# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Whatever answers prompts, as evaluation and `trl-ext generate` see it: a name, a tokenizer and a few callables.

[`Policy`] is what is measured and what answers. [`Decoding`] is how a method makes policies from a frozen model and
what it trained.
"""

import contextlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from trl_ext.data.completion import Completion
from trl_ext.data.schema import DataError
from trl_ext.data.tokenization import encode_prompt
from trl_ext.generation.generate import generate
from trl_ext.generation.streaming import TextStream
from trl_ext.generation_settings import GenerationSettings, pad_token_id
from trl_ext.logprobs.logprobs import LogProbs, completion_logps
from trl_ext.models.load import adapter_disabled, base_of, context_length


@dataclass(frozen=True)
class Policy:
    """
    Something that answers prompts, as evaluation sees it.

    Parameters:
        name (`str`):
            What tables and errors call it.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Turns prompts into the token ids that the two callables take.
        generate (`Callable`):
            `(prompt_ids, settings) -> completions`: for each prompt the list of its
            [`~trl_ext.generation.generate.Completion`]s. Draws from torch's global generator.
        logps (`Callable`, *optional*):
            `(prompt_ids, completion_ids) -> logps`: for each completion of each prompt the log-probabilities of its
            tokens, in nats, a tensor of shape `(T,)`, under the distribution that `generate` draws from at temperature
            1. Without it the KL is left out.
        stream (`Callable`, *optional*):
            `(prompt_ids, settings, show) -> completion`: one [`~trl_ext.generation.generate.Completion`] of one
            prompt, drawn as `generate` draws; the settings ask for one. `show` is called with each new piece of its
            text as soon as that is certain; the pieces add up to the completion's text. Without it the answer is
            shown when it is complete.
        extras (`dict[str, Any]`, *optional*):
            What the report writes beside the metrics: the settings that tell this policy from its siblings (such as
            `{"beta": 2.0}`). Values must have a form in JSON.
        kl_bound (`float`, *optional*):
            Upper bound of the KL to the model that it draws from, in nats a response, of a policy without `logps`.
        series (`str`, *optional*, defaults to `""`):
            Line of the reward-KL frontier that it is a point of. By default it is a line of its own.
        context (`int`, *optional*, defaults to `0`):
            Tokens that a prompt and its completion may have together (`0`: not known).
    """

    name: str
    tokenizer: PreTrainedTokenizerBase
    generate: Callable[[list[list[int]], GenerationSettings], list[list[Completion]]]
    logps: Callable[[list[list[int]], list[list[list[int]]]], list[list[torch.Tensor]]] | None = None
    stream: Callable[[list[int], GenerationSettings, Callable[[str], None]], Completion] | None = None
    extras: dict[str, Any] = field(default_factory=dict)
    kl_bound: float | None = None
    series: str = ""
    context: int = 0

    def check_context_length(
        self, prompt_ids: Sequence[Sequence[int]], settings: GenerationSettings, first: int = 0
    ) -> None:
        """
        Check that completions of the longest fit behind prompts: a model past its positions writes nonsense, or fails.

        Args:
            prompt_ids (`Sequence[Sequence[int]]`): Token ids of prompts.
            settings ([`~trl_ext.generation.generate.GenerationSettings`]): How they are answered.
            first (`int`, *optional*, defaults to `0`): Number of the first one, for the message.

        Raises:
            [`~trl_ext.data.schema.DataError`]: One is too long. The message has its number.
        """
        longest = settings.max_completion_length
        for number, ids in enumerate(prompt_ids, start=first):
            if self.context and len(ids) + longest > self.context:
                raise DataError(
                    f"prompt {number} has {len(ids)} tokens, but with max_completion_length ({longest}) the model has "
                    f"room for {max(self.context - longest, 0)}: shorten either."
                )


@runtime_checkable
class Decoding(Protocol):
    """
    How what a method trained answers prompts together with a frozen model.

    A method names its class in [`~trl_ext.Method`]'s `decoding`. The class is a dataclass whose fields all have
    defaults, with a `help` in their metadata: they become flags of `trl-ext evaluate` and `trl-ext generate`, so their
    names must differ from the flags that are there and from those of other methods. The first is the main one: the
    others do nothing without it, and setting them alone is an error. Making an instance must load nothing, and its
    module must import fast.

    A class may have one thing more, the property `served_at_once`; see [`served_at_once`].
    """

    @property
    def active(self) -> bool:
        """Whether the user asked for it, that is, set its main field. Nothing else is called if not."""

    def check(self) -> None:
        """
        Called before anything is loaded.

        Raises:
            `ValueError`: A setting is out of its range, or two of them contradict each other. The message names the
                field and says what to do.
        """

    def policies(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        name: str,
        batch_size: int,
        progress: Callable[[int], Any] | None = None,
    ) -> list[Policy]:
        """
        Load what the settings name and make one [`Policy`] a setting, such as one a weight.

        The policies share what was loaded, and are used one after the other, in any order, while `model` stays as it
        is. They have different names, their settings in `extras`, and one `series`.

        Args:
            model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]): The frozen model, in evaluation mode.
            tokenizer ([`~transformers.PreTrainedTokenizerBase`]): Its tokenizer.
            name (`str`): What tables call the model; names of the policies start with it.
            batch_size (`int`): Sequences that may be generated or scored at once.
            progress (`Callable`, *optional*): To be called with the number of prompts just answered, after each batch.

        Raises:
            `ValueError` or `OSError`: Something cannot be loaded, or does not fit the model.
        """


def served_at_once(decodings: Iterable[Decoding]) -> int:
    """
    How many answers decodings draw at once from models of their own, servers' say; 0 where none has one.

    A decoding that brings its model says so by a property of this name above 0. It is then asked for policies without
    a model and a tokenizer: both are `None`.
    """
    return max((getattr(decoding, "served_at_once", 0) for decoding in decodings), default=0)


def model_policy(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    name: str = "model",
    batch_size: int = 64,
    use_adapter: bool = True,
    progress: Callable[[int], Any] | None = None,
) -> Policy:
    """
    The [`Policy`] of a transformers model.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]): The model.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): Its tokenizer.
        name (`str`, *optional*, defaults to `"model"`): What tables and errors call it.
        batch_size (`int`, *optional*, defaults to `64`): Sequences that are generated or scored at once.
        use_adapter (`bool`, *optional*, defaults to `True`): `False` measures a [`~peft.PeftModel`]'s base model
            instead, so that the two share their weights.
        progress (`Callable`, *optional*): Called with the number of prompts just answered, after each batch.
    """

    def adapter() -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext() if use_adapter else adapter_disabled(model)

    def sample(prompt_ids: list[list[int]], settings: GenerationSettings) -> list[list[Completion]]:
        with adapter():
            return generate(model, tokenizer, prompt_ids, settings, batch_size=batch_size, progress=progress)

    def logps(prompt_ids: list[list[int]], completion_ids: list[list[list[int]]]) -> list[list[torch.Tensor]]:
        pad = pad_token_id(tokenizer)
        # Separate rows: the same arithmetic for a model and its base, and nothing to share at one completion a prompt.
        rows = LogProbs(model, pad, shared_prefix="never")
        with adapter():
            return completion_logps(
                model, prompt_ids, completion_ids, pad_token_id=pad, batch_size=batch_size, log_probs=rows
            )

    def stream(ids: list[int], settings: GenerationSettings, show: Callable[[str], None]) -> Completion:
        streamer = TextStream(tokenizer, show)
        with adapter():
            [[completion]] = generate(model, tokenizer, [ids], settings, streamer=streamer)
        streamer.finish(completion.text)
        return completion

    context = context_length(model)
    return Policy(name=name, tokenizer=tokenizer, generate=sample, logps=logps, stream=stream, context=context)


@dataclass
class Source:
    """
    A model to sample from.

    Args:
        name (`str`): What the column `sources` and messages call it.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): Its tokenizer.
        model ([`~transformers.PreTrainedModel`]): The model.
        draw (`Callable`, *optional*): What draws, from prompts to K completions each; by default transformers, from
            the model.
        context (`int`, *optional*, defaults to `0`): Longest text of what draws, if that is less than the model's.
    """

    name: str
    tokenizer: PreTrainedTokenizerBase
    model: PreTrainedModel
    draw: Callable[[list[list[int]]], list[list[Completion]]] | None = None
    context: int = 0

    def room(self, settings: GenerationSettings) -> int:
        """
        Longest prompt that leaves positions for a completion, in tokens; 0 if the model has no limit.

        Raises:
            `ValueError`: There is none.
        """
        own = getattr(base_of(self.model).config.get_text_config(), "max_position_embeddings", None)
        positions = min(filter(None, [own, self.context]), default=0)
        if positions and positions <= settings.max_completion_length:
            limit = f"vllm_max_model_length is {positions}"
            if positions != self.context:
                limit = f"{self.name!r} has {positions} positions"
            raise ValueError(
                f"max_completion_length ({settings.max_completion_length}) leaves no room for a prompt: {limit}."
            )
        return positions - settings.max_completion_length if positions else 0

    def encode(self, prompt: Any) -> list[int]:
        """Token ids of a prompt; a [`~trl_ext.data.schema.DataError`] names the model if it has no chat template."""
        try:
            return encode_prompt(self.tokenizer, prompt)
        except DataError as error:
            raise DataError(f"{self.name!r}: {error}") from error
