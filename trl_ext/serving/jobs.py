# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Jobs: the completions that one request waits for, and what became of each of them."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedTokenizerBase

from trl_ext.generation.growing_text import GrowingText
from trl_ext.generation.observer import TokenLogprobs
from trl_ext.generation.token_guidance import TokenGuidance
from trl_ext.generation_settings import GenerationSettings

from .limits import RequestError


@dataclass(frozen=True)
class Seen:
    """
    A token of a completion.

    Args:
        id (`int`): Its id.
        logprobs ([`~trl_ext.generation.observer.TokenLogprobs`], *optional*): Log-probabilities at its position.
        guidance ([`~trl_ext.generation.token_guidance.TokenGuidance`], *optional*): What guides did there.
    """

    id: int
    logprobs: TokenLogprobs | None = None
    guidance: TokenGuidance | None = None


@dataclass(frozen=True)
class Piece:
    """
    A new piece of a completion.

    Args:
        index (`int`): Number of the completion in its request.
        text (`str`): The piece of text.
        tokens (`list[Seen]`): The tokens since the last piece.
        finish_reason (`str`, *optional*): `"stop"` or `"length"`, if this piece is the last.
    """

    index: int
    text: str
    tokens: list[Seen]
    finish_reason: str | None = None


@dataclass(frozen=True)
class Done:
    """All completions of a job are finished."""


@dataclass(frozen=True)
class Failed:
    """
    A job failed.

    Args:
        error ([`~trl_ext.serving.limits.RequestError`]): Why.
    """

    error: RequestError


Event = Piece | Done | Failed


@dataclass(frozen=True)
class BatchKey:
    """
    What completions of one batch have in common.

    Args:
        model (`str`): Name of the model.
        beta (`tuple`, *optional*): Weights of the guides, as sorted pairs.
        settings ([`~trl_ext.generation_settings.GenerationSettings`]): Settings of the sampling.
        shows_guidance (`bool`, *optional*, defaults to `False`): Whether guides say what they do. They are then
            asked at weight 0 too.
    """

    model: str
    beta: tuple[tuple[str, float], ...] | None
    settings: GenerationSettings
    shows_guidance: bool = False


class Row:
    """
    A completion.

    Args:
        job ([`Job`]): The job that it belongs to.
        index (`int`): Its number in the job.
        prompt_ids (`list[int]`): Token ids of the prompt.
        limit (`int`): Maximum number of tokens.
        seed (`int`): Seed of its sampling.

    Attributes:
        tokens (`list[Seen]`): Its tokens so far, with the end of sequence.
        finish_reason (`str`, *optional*): `"stop"` or `"length"`, as soon as it is finished.
    """

    def __init__(self, job: "Job", index: int, prompt_ids: list[int], limit: int, seed: int) -> None:
        self.job, self.index, self.prompt_ids, self.limit, self.seed = job, index, prompt_ids, limit, seed
        self.tokens: list[Seen] = []
        self.finish_reason: str | None = None
        self._text = GrowingText(job.tokenizer, prompt_ids, job.stop)
        self._sent = 0

    @property
    def text(self) -> str:
        """The text so far."""
        return self._text.text

    @property
    def ids(self) -> list[int]:
        """Token ids so far."""
        return [token.id for token in self.tokens]

    def add(self, token: Seen, ended: bool) -> bool:
        """
        Add a token, and send what is final of the text.

        Args:
            token ([`Seen`]): The token.
            ended (`bool`): Whether it ends the completion.

        Returns:
            `bool`: Whether the completion is finished.
        """
        self.tokens.append(token)
        over = ended or len(self.tokens) >= self.limit
        if not (over or self.job.stream or self.job.stop):  # decoding at each step takes time
            return False
        piece = self._text.grow(self.ids, final=over)
        if ended or self._text.stopped:
            self.finish_reason = "stop"
        elif over:
            self.finish_reason = "length"
        if piece or self.finish_reason:
            self._send(piece)
        return self.finish_reason is not None

    def close(self) -> None:
        """Finish a completion that its model has not ended: it had no space for more tokens."""
        if self.finish_reason is None:
            piece = self._text.grow(self.ids, final=True)
            self.finish_reason = "stop" if self._text.stopped else "length"
            self._send(piece)

    def _send(self, piece: str) -> None:
        tokens, self._sent = self.tokens[self._sent :], len(self.tokens)
        self.job.notify(Piece(self.index, piece, tokens, self.finish_reason))


@dataclass(eq=False)
class Job:
    """
    The completions of one request.

    Args:
        key ([`BatchKey`]): What decides which other completions they can share a batch with.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): The tokenizer.
        notify (`Callable`): Called with each [`Event`], in the thread that generates.
        stop (`tuple[str, ...]`, *optional*): Texts that end a completion.
        logprobs (`int`, *optional*): Number of likeliest tokens to return at each position; by default nothing.
        guidance (`int`, *optional*): Number of candidates to return at each position; by default nothing.
        stream (`bool`, *optional*, defaults to `False`): Whether pieces are wanted before the end.
        best_of_n (`int`, *optional*, defaults to `1`): Completions of which one is kept.
        reward_weights (`Sequence[float]`, *optional*): A weight for each reward that chooses it, 1 by default.
        reward_rows (`list[dict]`, *optional*): A row with the `prompt` for each group of `best_of_n` completions.
        alone (`bool`, *optional*, defaults to `False`): Whether to generate them without those of other jobs: a batch
            with others has failed, or the policy samples a batch with one seed and the request gives its own.

    Attributes:
        rows (`list[Row]`): The completions, those of a prompt next to each other.
        unused_tokens (`int`): Tokens of completions that `best_of_n` did not keep.
        cancelled (`threading.Event`): Set if nobody waits for the completions any more.
    """

    key: BatchKey
    tokenizer: PreTrainedTokenizerBase
    notify: Callable[[Event], Any]
    stop: tuple[str, ...] = ()
    logprobs: int | None = None
    guidance: int | None = None
    stream: bool = False
    best_of_n: int = 1
    reward_weights: Sequence[float] | None = None
    reward_rows: list[dict[str, Any]] = field(default_factory=list)
    alone: bool = False
    rows: list[Row] = field(default_factory=list)
    cancelled: threading.Event = field(default_factory=threading.Event)
    unused_tokens: int = 0

    def add_rows(self, prompts: Sequence[list[int]], limits: Sequence[int], seeds: Sequence[int]) -> None:
        """Add a completion for each prompt, with its length limit and seed."""
        for prompt, limit, seed in zip(prompts, limits, seeds, strict=True):
            self.rows.append(Row(self, len(self.rows), prompt, limit, seed))

    @property
    def finished(self) -> bool:
        """Whether all completions are."""
        return all(row.finish_reason for row in self.rows)
