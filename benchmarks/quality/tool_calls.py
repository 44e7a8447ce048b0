# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
Requests that need a function of a list, and code that checks whether an answer is a call of the right one.

A prompt is a system message, a turn for each of three functions that shows how it is called, and the request of a
user, which needs one of the three. The values in the examples are in no request.
"""

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from trl_ext.instructions.text import answer_text


LISTED = 3  # functions in a prompt


@dataclass(frozen=True)
class Tool:
    """
    A function that a model may call.

    Args:
        name (`str`): Its name.
        arguments (`dict[str, str]`): The JSON type of each argument; all of them are required.
        requests (`tuple[str, ...]`): Requests that need it, with a place for each argument.
        values (`dict[str, tuple]`): Values of each argument: the first is the example's, the last third are for
            held-out prompts, the others for training.
    """

    name: str
    arguments: dict[str, str]
    requests: tuple[str, ...]
    values: dict[str, tuple[Any, ...]]

    def example(self) -> list[dict[str, str]]:
        """A turn that calls it."""
        values = {name: found[0] for name, found in self.values.items()}
        call = {"name": self.name, "arguments": values}
        return [
            {"role": "user", "content": self.requests[0].format(**values)},
            {"role": "assistant", "content": json.dumps(call)},
        ]


_CITIES = ("Lisbon", "Oslo", "Cairo", "Lima", "Dublin", "Kyoto", "Turin", "Ghent", "Quito")
_NAMES = ("Maria", "Paul", "Chen", "Aisha", "Tom", "Ingrid", "Ravi", "Sofia", "Emil")
_NUMBERS = (5, 12, 20, 30, 45, 60, 8, 25, 90)
TOOLS = (
    Tool(
        "get_weather",
        {"city": "string"},
        ("What is the weather like in {city}?", "Will it rain in {city} today?", "How warm is it in {city}?"),
        {"city": _CITIES},
    ),
    Tool(
        "set_timer",
        {"minutes": "integer"},
        ("Set a timer for {minutes} minutes.", "Wake me up in {minutes} minutes.", "Remind me in {minutes} minutes."),
        {"minutes": _NUMBERS},
    ),
    Tool(
        "send_message",
        {"to": "string", "text": "string"},
        ("Send a message to {to}: {text}", "Tell {to} this: {text}", "Text {to} that {text}"),
        {
            "to": _NAMES,
            "text": (
                "I am late",
                "dinner is ready",
                "the train is full",
                "see you at noon",
                "call me back",
                "the shop is closed",
                "bring the keys",
                "the cat is fine",
                "lunch is at one",
            ),
        },
    ),
    Tool(
        "convert_money",
        {"amount": "integer", "currency": "string"},
        ("How much are {amount} euros in {currency}?", "Convert {amount} euros to {currency}."),
        {
            "amount": _NUMBERS,
            "currency": ("dollars", "pounds", "yen", "francs", "rupees", "pesos", "krona", "rand", "won"),
        },
    ),
    Tool(
        "play_music",
        {"artist": "string"},
        ("Play something by {artist}.", "I want to hear {artist}.", "Put on some {artist}, please."),
        {"artist": ("Bach", "Queen", "Abba", "Mozart", "Blur", "Dvorak", "Sade", "Chopin", "Toto")},
    ),
    Tool(
        "find_recipe",
        {"dish": "string", "people": "integer"},
        ("How do I cook {dish} for {people} people?", "Find a recipe of {dish} for {people} people."),
        {
            "dish": ("lasagne", "onion soup", "curry", "pancakes", "risotto", "goulash", "ramen", "paella", "chili"),
            "people": (2, 3, 4, 5, 6, 7, 8, 9, 10),
        },
    ),
    Tool(
        "book_table",
        {"restaurant": "string", "hour": "integer"},
        ("Book a table at {restaurant} at {hour} o'clock.", "Reserve a table for {hour} o'clock at {restaurant}."),
        {
            "restaurant": ("Roma", "Bella", "Tapas", "Nordlys", "Saigon", "Olive", "Zum Hirsch", "Mirazur", "Pier 9"),
            "hour": (1, 6, 7, 8, 9, 12, 5, 10, 11),
        },
    ),
    Tool(
        "turn_on_light",
        {"room": "string"},
        ("Turn on the light in the {room}.", "It is dark in the {room}.", "I need light in the {room}."),
        {"room": ("kitchen", "bedroom", "garage", "hall", "office", "cellar", "bathroom", "attic", "garden")},
    ),
)
BY_NAME = {tool.name: tool for tool in TOOLS}
_SYSTEM = "You answer every request with a call of one function: one line of JSON, and nothing else."
_PYTHON: dict[str, type] = {"string": str, "integer": int}


def make_prompts(num: int, seed: int = 0, *, held_out: bool = False) -> list[dict[str, Any]]:
    """
    Requests with three functions, of which one fits.

    Args:
        num (`int`): How many; no two are equal.
        seed (`int`, *optional*, defaults to `0`): Seed.
        held_out (`bool`, *optional*, defaults to `False`): Whether the arguments' values are those that are kept out
            of training.

    Returns:
        `list[dict]`: Rows with `prompt` (messages), `tool` (the name of the right function) and `values` (JSON of the
        arguments as the request has them).

    Raises:
        `ValueError`: There are fewer different requests.
    """
    rng = random.Random(f"{seed} {held_out}")
    rows: dict[str, dict[str, Any]] = {}
    for _ in range(50 * num):
        if len(rows) == num:
            return list(rows.values())
        tool, *others = rng.sample(TOOLS, LISTED)
        values = {name: _value(rng, found, held_out) for name, found in tool.values.items()}
        request = rng.choice(tool.requests).format(**values)
        listed = rng.sample([tool, *others], LISTED)
        prompt = [
            {"role": "system", "content": _SYSTEM},
            *(message for each in listed for message in each.example()),
            {"role": "user", "content": request},
        ]
        rows.setdefault(request, {"prompt": prompt, "tool": tool.name, "values": json.dumps(values)})
    raise ValueError(f"There are fewer than {num} different requests.")


def _value(rng: random.Random, values: Sequence[Any], held_out: bool) -> Any:
    first = 2 * len(values) // 3
    return rng.choice(values[first:] if held_out else values[1:first])


def call_parts(
    prompts: Sequence[Any], completions: Sequence[Any], tool: Sequence[str], values: Sequence[str], **kwargs: Any
) -> list[float]:
    """
    Reward function: how many of four parts of a call are right, from 0 to 1.

    They are JSON of the form `{"name": ..., "arguments": {...}}`; the right function; its arguments, with values of
    their types; and the values that the request has. A later part counts only after those before it.

    Args:
        prompts (`Sequence`), completions (`Sequence`): Texts or lists of messages.
        tool (`Sequence[str]`), values (`Sequence[str]`): The columns of the dataset, see [`make_prompts`].
        kwargs: Further arguments of reward functions, which are not used.
    """
    return [parts(answer_text(text), *of) / 4 for text, *of in zip(completions, tool, values, strict=True)]


def valid_call(
    prompts: Sequence[Any], completions: Sequence[Any], tool: Sequence[str], values: Sequence[str], **kwargs: Any
) -> list[float]:
    """Reward function: 1 for a valid call of the right function, the first three of [`call_parts`], else 0."""
    return [float(parts(answer_text(text), *of) >= 3) for text, *of in zip(completions, tool, values, strict=True)]


def parts(answer: str, tool: str, values: str) -> int:
    """How many of the four parts of a call are right, counted from the first."""
    try:
        call = json.loads(answer)
    except ValueError:
        return 0
    if not isinstance(call, dict) or set(call) != {"name", "arguments"} or not isinstance(call["arguments"], dict):
        return 0
    checks: tuple[Callable[[], bool], ...] = (
        lambda: call["name"] == tool,
        lambda: _typed(call["arguments"], BY_NAME[tool].arguments),
        lambda: call["arguments"] == json.loads(values),
    )
    found = 1
    for check in checks:
        if not check():
            break
        found += 1
    return found


def _typed(arguments: dict[str, Any], kinds: dict[str, str]) -> bool:
    """Whether the arguments are those of the function, with values of their types."""
    return set(arguments) == set(kinds) and all(type(arguments[name]) is _PYTHON[kind] for name, kind in kinds.items())
