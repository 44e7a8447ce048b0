# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
Which tokens of a completion are guided: every n-th, those that begin a word or a sentence, or those at which the
language model hesitates. All others are plain samples of the language model, and what guides need not be computed.

A decision depends on the text so far and on the language model's distribution only. It can therefore be made again for
a given completion, so that log-probabilities under guidance stay exact, and it does not depend on the other rows of a
batch.

Dimensions: N rows, V vocabulary, k candidates.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch

from trl_ext.validation import as_mapping, convert, did_you_mean


UNITS = ("word", "sentence")
NUMBERS = ("entropy", "margin", "confidence", "random")


@dataclass(frozen=True)
class GuideSchedule:
    """
    Which tokens of a completion are guided: those that meet all of the conditions.

    Args:
        every (`int` or `str`, *optional*, defaults to `1`):
            Guides every n-th new token, the first one included: those at positions 0, n, 2n, ... of the completion.
            `"word"` and `"sentence"` guide the tokens that begin one; [`~trl_ext.decoding.text_units.TextUnits`] says
            what that is.
        entropy (`float`, *optional*, defaults to `0.0`):
            Guides where the entropy of the language model's distribution of the next token is above this, in nats
            ([`entropy`]; `0`: everywhere).
        margin (`float`, *optional*, defaults to `0.0`):
            Guides where the guide moves the logits of two candidates apart by more than this, in nats ([`margin`];
            `0`: everywhere). It is known only after the values were computed, so it lowers the KL and saves no time.
        confidence (`float`, *optional*, defaults to `0.0`):
            Follows a proxy's decision where its probability is above this ([`sure`]; `0`: everywhere).
        random (`float`, *optional*, defaults to `0.0`):
            Guides this share of the tokens, chosen at random ([`uniform`]; `0`: all). It is the control of the other
            conditions: the same share of guided tokens at other places.
        seed (`int`, *optional*, defaults to `0`):
            Seed of that choice.

    Raises:
        `ValueError`: A number is out of its range.
    """

    every: int | str = 1
    entropy: float = 0.0
    margin: float = 0.0
    confidence: float = 0.0
    random: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if isinstance(self.every, bool) or not (
            self.every >= 1 if isinstance(self.every, int) else self.every in UNITS
        ):
            raise ValueError(
                f"`every` must be a whole number of at least 1, 'word' or 'sentence', got {self.every!r}."
            )
        for name in ("entropy", "margin"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"`{name}` must be a number of nats, 0 or more, got {getattr(self, name)}.")
        if not 0 <= self.random <= 1:
            raise ValueError(f"`random` must be a share between 0 and 1, got {self.random}.")
        if self.confidence and not 0.5 <= self.confidence < 1:
            raise ValueError(
                f"`confidence` must be from 0.5 to below 1, or 0 for no such condition, got {self.confidence}: the "
                "likelier of two decisions has a probability of at least 0.5."
            )
        if self.seed and not self.random:
            raise ValueError("`seed` has no effect without `random`: remove it, or set `random`.")

    @property
    def always(self) -> bool:
        """Whether every token is guided."""
        return self.every == 1 and not any(getattr(self, name) for name in NUMBERS)

    def changes(self) -> dict[str, Any]:
        """The settings that are not the defaults, for a report."""
        return {field.name: value for field in fields(self) if (value := getattr(self, field.name)) != field.default}

    def skips(self, position: int) -> bool:
        """Whether the token at this position of a completion is not guided, in whatever row."""
        return isinstance(self.every, int) and position % self.every > 0

    def __str__(self) -> str:
        """The conditions in words, for the name of a policy; empty if there is none."""
        every = [] if self.every == 1 else [f"every {self.every}"]
        return ", ".join([*every, *(f"{name} {getattr(self, name):g}" for name in NUMBERS if getattr(self, name))])


def read_schedule(
    every: int | str,
    when: Mapping[str, Any] | str | None,
    *,
    prefix: str = "guide",
    refused: Mapping[str, str] | None = None,
) -> GuideSchedule:
    """
    The schedule of two settings, `<prefix>_every` and `<prefix>_when`.

    Args:
        every (`int` or `str`): A number, also as text, `"word"` or `"sentence"`.
        when (`dict` or `str`, *optional*): The other conditions, also as a JSON object.
        prefix (`str`, *optional*, defaults to `"guide"`): How the names of the settings begin.
        refused (`dict[str, str]`, *optional*): Conditions that this guide cannot have, each with the reason.

    Raises:
        `ValueError`: A value is none of those; the message names the setting.
    """
    setting = f"{prefix}_when"
    given = as_mapping(setting, when or None) or {}
    known = [field.name for field in fields(GuideSchedule) if field.name != "every"]
    usable = [name for name in known if name not in (refused or {})]
    conditions = {}
    for name, value in given.items():
        if name in (refused or {}):
            raise ValueError(f"`{setting}` has the condition {name!r}: {(refused or {})[name]}")
        if name not in usable:
            there_is = f"{', '.join(usable)}{did_you_mean(str(name), usable, repr) or '.'}"
            raise ValueError(f"`{setting}` has the condition {name!r}, which does not exist: there is {there_is}")
        try:
            conditions[name] = convert(value, int if name == "seed" else float)
        except ValueError as error:
            raise ValueError(f"`{setting}`: {name} {error}.") from None
    if isinstance(every, str) and every.strip().lstrip("-").isdigit():
        every = int(every)
    try:
        GuideSchedule(every)
    except ValueError as error:
        raise ValueError(str(error).replace("`every`", f"`{prefix}_every`")) from None
    try:
        return GuideSchedule(every, **conditions)
    except ValueError as error:
        raise ValueError(f"`{setting}`: {error}") from None


# ---------------------------------------------------------------------------------------------------------- equations


def entropy(logits_NV: torch.Tensor) -> torch.Tensor:
    """
    Entropy of the distribution of the next token, in nats: - sum over a of p_a log p_a -> (N,).

    Args:
        logits_NV (`torch.Tensor` of shape `(N, V)`): Logits; -inf for impossible tokens.
    """
    return torch.special.entr(logits_NV.float().softmax(-1)).sum(-1)


def margin(added_Nk: torch.Tensor, possible_Nk: torch.Tensor) -> torch.Tensor:
    """
    How far guidance moves the logits of two candidates apart at most: max w_a - min w_a -> (N,).

    w_a is what it adds to the logit of candidate a: the weighted sum of its values. By Hoeffding's lemma a token of
    margin m has a KL to the language model of at most m^2 / 8 nats, which is what is given up by not guiding it, if
    all tokens are candidates.

    Args:
        added_Nk (`torch.Tensor` of shape `(N, k)`): w.
        possible_Nk (`torch.Tensor` of shape `(N, k)`): True for candidates that are possible.
    """
    largest = added_Nk.masked_fill(~possible_Nk, -torch.inf).amax(-1)
    return (largest - added_Nk.masked_fill(~possible_Nk, torch.inf).amin(-1)).clamp(min=0)


def sure(logits: torch.Tensor, confidence: float) -> torch.Tensor:
    """
    Where the probability of a yes-or-no decision is above `confidence`: max(p, 1 - p) > c, with p = sigmoid(logit).

    Args:
        logits (`torch.Tensor`): Logits, of any shape.
        confidence (`float`): c, at least a half; 0 means everywhere.
    """
    if not confidence:
        return torch.ones_like(logits, dtype=torch.bool)
    return logits.abs().sigmoid() > confidence


# Of a 64-bit linear congruential generator, and of SplitMix64, whose output function makes all bits depend on all.
MULTIPLIER, INCREMENT = 6364136223846793005, 0x9E3779B97F4A7C15
MIXERS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)


def _signed(number: int) -> int:
    """A number modulo 2^64, as int64 holds it."""
    return (number + 2**63) % 2**64 - 2**63


def text_digest(ids_NS: torch.Tensor, mask_NS: torch.Tensor) -> torch.Tensor:
    """
    Number of a text: the sum over its tokens x_1 ... x_S of (x_i + 1) m^(S - i), modulo 2^64 -> (N,), int64.

    Padding on the left does not count.

    Args:
        ids_NS (`torch.Tensor` of shape `(N, S)`): Token ids.
        mask_NS (`torch.Tensor` of shape `(N, S)`): 1 for tokens, 0 for padding.
    """
    columns = ids_NS.shape[1]
    # With padding between tokens, a token's power is the number of tokens after it.
    after_NS = mask_NS.long().flip(1).cumsum(1).flip(1) - mask_NS.long()
    powers = torch.full((max(columns, 1),), MULTIPLIER, device=ids_NS.device, dtype=torch.long)
    powers[0] = 1
    return ((ids_NS + 1) * mask_NS.long() * powers.cumprod(0)[after_NS]).sum(1)


def extend_digest(digest_N: torch.Tensor, tokens_N: torch.Tensor) -> torch.Tensor:
    """[`text_digest`] of texts with one more token each: digest m + x + 1."""
    return digest_N * MULTIPLIER + tokens_N + 1


def uniform(digest_N: torch.Tensor, seed: int) -> torch.Tensor:
    """
    A number in [0, 1) for each text, as if it were random: SplitMix64 of its digest and a seed -> (N,), float32.

    A counter-based generator: the number depends on the text and the seed only, neither on the batch nor on the
    device, so that the decision about a token can be made again when log-probabilities are computed.

    Args:
        digest_N (`torch.Tensor` of shape `(N,)`): From [`text_digest`].
        seed (`int`): The seed.
    """
    z = digest_N + _signed((seed + 1) * INCREMENT)
    for shift, factor in zip((30, 27), MIXERS, strict=True):
        z = (z ^ _shifted(z, shift)) * _signed(factor)
    z = z ^ _shifted(z, 31)
    return _shifted(z, 40).float() / 2**24


def _shifted(z: torch.Tensor, bits: int) -> torch.Tensor:
    """Logical shift to the right: int64 is signed, and `>>` would repeat its sign."""
    return (z >> bits) & (2 ** (64 - bits) - 1)
