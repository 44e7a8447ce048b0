# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Answers and comparisons of them, as the page shows, keeps and exports them."""

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any


FORMAT = 1  # of exported files


@dataclass(frozen=True)
class Option:
    """
    A token that could have been at a position.

    Args:
        text (`str`): Its name.
        after (`float`): Its probability in the answer's distribution, at temperature 1.
        before (`float`, *optional*): Its probability without guidance; not known for a model that nothing guides.
        values (`dict[str, float | None]`, *optional*): Its values by head; `None` if it was not scored.
    """

    text: str
    after: float
    before: float | None = None
    values: dict[str, float | None] | None = None


@dataclass(frozen=True)
class Token:
    """
    A token of an answer, or several that share a character.

    Args:
        text (`str`): What it adds to the text of the answer; empty for one that ends it.
        name (`str`): Its name.
        chosen ([`Option`], *optional*): Its probabilities and values; `None` if the server returns none.
        options (`list[Option]`): Tokens that could have been there, the likeliest first.
    """

    text: str
    name: str
    chosen: Option | None = None
    options: list[Option] = field(default_factory=list)


@dataclass
class Answer:
    """
    An answer, as far as it is generated.

    Args:
        model (`str`): Name of the model.
        weights (`dict[str, float]`, *optional*): Weights of what guides it; `None` if nothing with weights does.
        tokens (`list[Token]`): Its tokens.
        finish_reason (`str`): `"stop"`, `"length"`, `"stopped"` by the user, `"error"`, or empty while it grows.
        note (`str`): What the answer lacks, and why.
        error (`str`): Why there is no answer, or no end of it.
        seconds (`float`): From the request to the last token.
    """

    model: str
    weights: dict[str, float] | None = None
    tokens: list[Token] = field(default_factory=list)
    finish_reason: str = ""
    note: str = ""
    error: str = ""
    seconds: float = 0.0

    @property
    def text(self) -> str:
        """Its text."""
        return "".join(token.text for token in self.tokens)

    @property
    def title(self) -> str:
        """The model with its weights, in a few words."""
        if not self.weights:
            return self.model
        named = ", ".join(
            f"beta {weight:g}" if len(self.weights) == 1 else f"{head} {weight:g}"
            for head, weight in self.weights.items()
        )
        return f"{self.model}, {named}"


@dataclass
class Comparison:
    """
    Answers of several models or settings to one prompt.

    Args:
        prompt (`str`): The prompt.
        settings (`dict[str, Any]`): The settings that the answers share: system message, sampling, seed.
        answers (`list[Answer]`): The answers.
        made_at (`str`): Date and time.
    """

    prompt: str
    settings: dict[str, Any]
    answers: list[Answer]
    made_at: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Everything, as JSON can hold it."""
        made = asdict(self)
        for answer, own in zip(self.answers, made["answers"], strict=True):
            own["text"] = answer.text
        return {"format": FORMAT, **made}

    @classmethod
    def from_dict(cls, given: dict[str, Any]) -> "Comparison":
        """
        A comparison that was exported.

        Raises:
            `ValueError`: It is no such file, or of another version.
        """
        if not isinstance(given, dict) or given.get("format") != FORMAT:
            raise ValueError(f"This is no comparison of the playground in format {FORMAT}: export it again.")
        answers = []
        for each in given["answers"]:
            tokens = [
                Token(
                    token["text"],
                    token["name"],
                    None if token["chosen"] is None else Option(**token["chosen"]),
                    [Option(**option) for option in token["options"]],
                )
                for token in each["tokens"]
            ]
            own = {name: value for name, value in each.items() if name not in ("text", "tokens")}
            answers.append(Answer(tokens=tokens, **own))
        return cls(given["prompt"], given["settings"], answers, given["made_at"])


# What tokens can be coloured by, beside the heads of guides.
LOGPROB, CHANGE = "log-probability", "change by guidance"


def quantities(answers: Iterable[Answer]) -> list[str]:
    """What the tokens of answers can be coloured by: heads first, then the change by guidance, then probabilities."""
    heads: dict[str, None] = {}
    guided = known = False
    for answer in answers:
        for token in answer.tokens:
            if token.chosen is not None:
                known = True
                guided |= token.chosen.before is not None
                heads |= dict.fromkeys(token.chosen.values or {})
                for option in token.options:
                    heads |= dict.fromkeys(option.values or {})
    return [*heads, *([CHANGE] if guided else []), *([LOGPROB] if known else [])]


def quantity(token: Token, name: str) -> float | None:
    """A quantity of a token; `None` if it is not known."""
    chosen = token.chosen
    if chosen is None:
        return None
    if name == LOGPROB:
        return _log(chosen.after)
    if name == CHANGE:
        return None if chosen.before is None else _log(chosen.after) - _log(chosen.before)
    return (chosen.values or {}).get(name)


def _log(probability: float) -> float:
    """Log-probability in nats; that of a token which is all but impossible is finite."""
    return math.log(max(probability, 1e-12))
