# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Completions of a policy with the values of their tokens, without a page or a server: for notebooks."""

import math
import time
from collections.abc import Collection

from trl_ext.data.completion import decode_after
from trl_ext.generation.observer import Observer, Step
from trl_ext.generation.token_guidance import Candidate, TokenGuidance
from trl_ext.generation_settings import GenerationSettings
from trl_ext.inference.policy import Policy
from trl_ext.seeds import seeded
from trl_ext.serving.answers import TokenTexts

from .answers import Answer, Option, Token
from .chunks import with_texts


class Recorder(Observer):
    """
    Keeps the tokens of one completion, with what guides did there, or else with log-probabilities.

    Args:
        texts ([`~trl_ext.serving.answers.TokenTexts`]): Names of tokens.
        candidates (`int`): Number of candidates to keep for each token.
    """

    def __init__(self, texts: TokenTexts, candidates: int) -> None:
        self.texts, self.top_candidates, self.top_logprobs = texts, candidates, candidates
        self.tokens: list[Token] = []

    def see(self, step: Step) -> Collection[int]:
        name = self.texts.of(step.tokens[0])
        if step.guidance is not None:
            self.tokens.append(self._guided(name, step.guidance[0]))
        elif step.logprobs is not None:
            [own] = step.logprobs
            options = [Option(self.texts.of(token), math.exp(logprob)) for token, logprob in own.top]
            self.tokens.append(Token("", name, Option(name, math.exp(own.logprob)), options))
        else:
            self.tokens.append(Token("", name))
        return ()

    def _guided(self, name: str, found: TokenGuidance) -> Token:
        def option(each: Candidate) -> Option:
            values = dict(zip(found.heads, each.values, strict=True)) if each.values else None
            return Option(self.texts.of(each.token), each.after, each.before, values)

        return Token("", name, option(found.chosen), [option(each) for each in found.candidates])


def record(
    policy: Policy,
    prompt: str | list[dict[str, str]],
    settings: GenerationSettings,
    *,
    candidates: int = 8,
    seed: int = 42,
) -> Answer:
    """
    Complete a prompt, and keep what guides did at each token.

    Args:
        policy ([`~trl_ext.inference.policy.Policy`]): The policy.
        prompt (`str` or `list[dict]`): Text that is continued, or messages.
        settings ([`~trl_ext.generation_settings.GenerationSettings`]): How to generate, with one completion.
        candidates (`int`, *optional*, defaults to `8`): Number of candidates to keep for each token.
        seed (`int`, *optional*, defaults to `42`): Seed of the sampling.

    Returns:
        [`~trl_ext.playground.answers.Answer`]: For [`~trl_ext.playground.markup.answer_html`].

    Raises:
        `ValueError`: The policy cannot be observed, or the settings ask for several completions.
    """
    if not policy.observable:
        raise ValueError(f"The tokens of {policy.name!r} cannot be seen one by one, so that they have no values.")
    start = time.monotonic()
    ids = policy.encode(prompt)
    recorder = Recorder(TokenTexts(policy.tokenizer), candidates)
    with seeded(seed, 0, 0):
        [[completion]] = policy.generate([ids], settings, observer=recorder)
    [text] = decode_after(policy.tokenizer, [ids], [completion.ids])
    tokens = with_texts(text, recorder.tokens)
    weights = None if policy.weights is None else dict(policy.weights.values)
    reason = "stop" if completion.ended else "length"
    return Answer(policy.series or policy.name, weights, tokens, reason, seconds=time.monotonic() - start)
