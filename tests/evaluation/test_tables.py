# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Printed tables: they fit 80 columns, and no name or heading is cut inside a word."""

import io
from typing import Any

import pytest
from rich.console import Console

from trl_ext.evaluation import tables


def printed(show, width=80):
    console = Console(file=io.StringIO(), width=width)
    show(console)
    return console.file.getvalue()


def row(model, **metrics):
    values = {"reward/imdb-2m-reward": -1.234, "kl": 4.99, "perplexity": 21.18, "distinct_2": 0.657, "ended": 0.263}
    values |= {"completion_length": 142.8, **metrics}
    return {"model": model, "notes": {}, **values, **{f"{key}_se": 0.25 for key in values}}


def test_headings_and_names_are_whole_words_in_80_columns():
    rows = [
        row("imdb-2m"),
        row(
            "outputs", **{"difference/imdb-2m-reward": 2.5, "reward/acting_reward": 0.5, "metric/share_of_names": 1.0}
        ),
        row("guided") | {"kl": None, "kl_bound": 0.64},
        {"model": "torn", "error": "OSError"},
    ]
    labels = {"imdb-2m": "imdb-2m (base)", "outputs": "qwen-rrhf", "torn": "torn"}
    labels["guided"] = "imdb-2m + quickstart_vas_with_a_long_name, beta 0.5"
    text = printed(lambda console: console.print(tables.models_table(rows, labels, console.width)))
    assert max(map(len, text.splitlines())) <= 80
    words = text.split()
    names = ["qwen-rrhf", "quickstart_", "vas_with_a_long_name,", "0.5"]
    for whole in ("perplexity", "distinct-2", "(nats)", "(tokens)", *names):
        assert whole in words, whole
    assert "…" not in text and "≤ 0.64" in text and "failed" in text and "± 0.25" in text
    # each model is in every table, and no column is in two
    assert words.count("qwen-rrhf") == words.count("torn") == words.count("model") <= 3
    assert words.count("perplexity") == 1


def test_a_wide_terminal_has_one_table():
    text = printed(lambda c: c.print(tables.models_table([row("m")], {"m": "m"}, c.width)), width=140)
    assert text.split().count("model") == 1


def test_a_prompt_is_printed_once_with_the_completions_of_all_models():
    shown = {name: {"completion": f"text of {name}", "rewards": {"r": 0.5}} for name in ("base", "one", "two")}
    entry = {"prompt": "Tell me", "models": shown}
    text = printed(lambda console: tables.print_completions(console, [entry], {name: name for name in shown}))
    assert [text.count(part) for part in ("Tell me", "text of base", "text of two", "r 0.50")] == [1, 1, 1, 3]


def test_zero_has_no_sign() -> None:
    assert tables.number(-0.0004, 0.0002) == "0.000 ± 0.000"
    assert tables.number(-0.05, 0.01) == "-0.050 ± 0.010"


@pytest.mark.parametrize("chat", [False, True])
def test_the_end_of_a_long_prompt_is_printed(chat: bool) -> None:
    """Some passages and a question: the table stays readable, and shows what the completion answers."""
    text = "Passage. " * 200 + "What is the answer?"
    prompt: Any = [{"role": "user", "content": text}] if chat else f"\n\n{text}"
    shown = str(tables.prompt_text(prompt))
    assert shown.startswith("[...] ") and shown.endswith("What is the answer?") and len(shown) < 420
    short: Any = [{"role": "user", "content": "Hi"}] if chat else "user: Hi"
    assert str(tables.prompt_text(short)) == "user: Hi"
