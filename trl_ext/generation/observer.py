# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
Observers of a generation: they see each token when it is chosen, and may end completions.

A token comes with what the observer asks for: log-probabilities (`top_logprobs`), and where something guides the
model the values of the candidates and their probabilities before and after guidance (`top_candidates`). Streaming,
the server and the playground see tokens in this way.

Dimensions: N sequences, V vocabulary, k likeliest tokens.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from transformers import LogitsProcessor, StoppingCriteria
from transformers.generation import BaseStreamer

from .token_guidance import SavedGuidance, TokenGuidance


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """
    Log-probabilities at one position, under the distribution that is sampled from at temperature 1.

    Args:
        logprob (`float`): That of the chosen token, in nats; -inf if its probability is 0.
        top (`list[tuple[int, float]]`): The likeliest tokens with their log-probabilities, likeliest first.
    """

    logprob: float
    top: list[tuple[int, float]]


@dataclass(frozen=True, slots=True)
class Step:
    """
    The next token of each completion that has not ended.

    Args:
        rows (`list[int]`): Numbers of these completions, which are those of their prompts.
        tokens (`list[int]`): Their next tokens.
        ended (`list[bool]`): Whether the token ends the completion.
        logprobs (`list[TokenLogprobs]`, *optional*): Their log-probabilities, if the observer asks for them.
        guidance (`list[TokenGuidance]`, *optional*): What guides did there, if the observer asks for it and something
            guides the model token by token.
    """

    rows: list[int]
    tokens: list[int]
    ended: list[bool]
    logprobs: list[TokenLogprobs] | None = None
    guidance: list[TokenGuidance] | None = None


class Observer:
    """
    Base class of observers, for one completion per prompt.

    Attributes:
        seeds (`Sequence[int]`, *optional*): One seed per prompt. A completion is then sampled with a generator of its
            own, whatever other prompts are in the batch. By default all are sampled with torch's global generator.
        top_logprobs (`int`, *optional*): Number of likeliest tokens whose log-probabilities are computed at each step.
            By default none are computed, nor those of the chosen tokens.
        top_candidates (`int`, *optional*): Number of candidate tokens to return at each step of a guided model, with
            their values and probabilities. Guides are then asked at weight 0 too. By default nothing of this is
            returned.
    """

    seeds: Sequence[int] | None = None
    top_logprobs: int | None = None
    top_candidates: int | None = None

    def see(self, step: Step) -> Collection[int]:
        """
        Receive the next tokens.

        Args:
            step ([`Step`]): The tokens.

        Returns:
            `Collection[int]`: Numbers of the completions that end here, in addition to those that have `ended`.
        """
        raise NotImplementedError


class StreamerObserver(Observer):
    """Passes the tokens of a single completion on to a streamer of transformers."""

    def __init__(self, streamer: BaseStreamer) -> None:
        self.streamer = streamer

    def see(self, step: Step) -> Collection[int]:
        self.streamer.put(torch.tensor(step.tokens))
        return ()


class SavedLogprobs(LogitsProcessor):
    """
    Logits processor that keeps the log-probabilities of the current step. It stands before the one that samples.

    Args:
        top (`int`): k, number of likeliest tokens to keep for each sequence.
    """

    supports_continuous_batching: ClassVar[bool] = False

    def __init__(self, top: int) -> None:
        self.top = top
        self._logps_NV: torch.Tensor | None = None

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self._logps_NV = scores.float().log_softmax(-1)
        return scores

    def of(self, tokens_N: torch.Tensor) -> list[TokenLogprobs]:
        """Those of the chosen tokens, shape `(N,)`."""
        assert self._logps_NV is not None
        logps_N = self._logps_NV.gather(1, tokens_N[:, None])[:, 0].tolist()
        top_Nk, ids_Nk = self._logps_NV.topk(min(self.top, self._logps_NV.shape[1]))
        tables = [list(zip(*row, strict=True)) for row in zip(ids_Nk.tolist(), top_Nk.tolist(), strict=True)]
        return [TokenLogprobs(*each) for each in zip(logps_N, tables, strict=True)]


class ObservedSteps(StoppingCriteria):
    """
    Stopping criterion of `generate` that shows each step to an observer and ends what it ends.

    Args:
        observer ([`Observer`]): The observer.
        rows (`Sequence[int]`): For each sequence of the batch the number of its completion.
        ends (`Collection[int]`): Tokens that end a completion.
        logprobs ([`SavedLogprobs`], *optional*): The processor that keeps the log-probabilities, if they are wanted.
        guidance ([`~trl_ext.generation.token_guidance.SavedGuidance`], *optional*): What a processor that guides
            writes down, if that is wanted.
    """

    supports_continuous_batching: ClassVar[bool] = False

    def __init__(
        self,
        observer: Observer,
        rows: Sequence[int],
        ends: Collection[int],
        logprobs: SavedLogprobs | None = None,
        guidance: SavedGuidance | None = None,
    ) -> None:
        self.observer, self.rows, self.ends = observer, list(rows), set(ends)
        self.logprobs, self.guidance = logprobs, guidance
        self._over = [False] * len(self.rows)

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        places = [place for place, over in enumerate(self._over) if not over]
        if places:
            tokens_N = input_ids[:, -1]
            tokens = tokens_N.tolist()
            saved = None if self.logprobs is None else self.logprobs.of(tokens_N)
            guidance = None if self.guidance is None else self.guidance.of(tokens_N)
            step = Step(
                [self.rows[i] for i in places],
                [tokens[i] for i in places],
                [tokens[i] in self.ends for i in places],
                None if saved is None else [saved[i] for i in places],
                None if guidance is None else [guidance[i] for i in places],
            )
            stopped = self.observer.see(step)
            for place in places:
                self._over[place] = tokens[place] in self.ends or self.rows[place] in stopped
        return torch.tensor(self._over, device=input_ids.device)
