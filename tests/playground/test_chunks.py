# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Chunks of streams as servers send them, and which token adds which part of the text."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trl_ext.playground.answers import Option, Token
from trl_ext.playground.chunks import read_chunk, with_texts


def named(*names: str) -> list[Token]:
    return [Token("", name) for name in names]


@pytest.mark.parametrize(
    ("text", "names", "parts"),
    [
        ("the film", ["the", " film"], ["the", " film"]),
        ("word", ["word "], ["word"]),  # the space comes with the next piece
        (" next", ["next"], [" next"]),
        (" a film", ["▁a", "▁film"], [" a", " film"]),  # spellings of a vocabulary
        ("\n\nNow", ["Ċ", "Ċ", "Now"], ["\n", "\n", "Now"]),
        (" film 😀!", [" film", "\ufffd", "\ufffd", "!"], [" film", "", " 😀", "!"]),  # parts of a character
        ("😀", ["\ufffd", "\ufffd", "<|im_end|>"], ["", "😀", ""]),
        ("", ["<|im_end|>"], [""]),
        ("<|im_end|>", ["<|", "im_end", "|>"], ["<|", "im_end", "|>"]),  # written by the model
        ("left over", ["left"], ["left over"]),
        ("all of it", [], ["all of it"]),
        ("", [], []),
    ],
)
def test_parts_of_a_text(text: str, names: list[str], parts: list[str]) -> None:
    assert [token.text for token in with_texts(text, named(*names))] == parts


@given(st.text(max_size=30), st.lists(st.text(max_size=4), max_size=6))
def test_parts_add_up_to_the_text(text: str, names: list[str]) -> None:
    """Whatever a server names its tokens: no character is lost, doubled or moved."""
    found = with_texts(text, named(*names))
    assert "".join(token.text for token in found) == text
    assert not names or [token.name for token in found] == names


def test_guidance_of_our_server() -> None:
    entry = {"token": " good", "before": 0.25, "after": 0.5, "values": {"reward": 1.5}}
    other = {"token": " bad", "before": 0.5, "after": 0.1, "values": {"reward": -1.0}}
    body = {
        "choices": [{"text": " good", "guidance": [entry | {"candidates": [entry, other]}], "finish_reason": "stop"}]
    }
    chunk = read_chunk(body)
    good = Option(" good", 0.5, 0.25, {"reward": 1.5})
    assert chunk.tokens == [Token(" good", " good", good, [good, Option(" bad", 0.1, 0.5, {"reward": -1.0})])]
    assert (chunk.text, chunk.finish_reason) == (" good", "stop")


def test_log_probabilities_of_both_endpoints() -> None:
    """exp(-0.5) = 0.6065; the likeliest first, whatever their order; bytes are the text of a token."""
    completions = {"tokens": ["a"], "token_logprobs": [-0.5], "top_logprobs": [{"b": -2.0, "a": -0.5}]}
    entry = {"token": "Ġa", "bytes": [32, 97], "logprob": -0.5, "top_logprobs": [{"token": "b", "logprob": -2.0}]}
    plain = read_chunk({"choices": [{"text": "a", "logprobs": completions}]}).tokens[0]
    chat = read_chunk({"choices": [{"delta": {"content": " a"}, "logprobs": {"content": [entry]}}]}).tokens[0]
    assert plain.chosen == Option("a", pytest.approx(0.6065, abs=1e-4))
    assert [option.text for option in plain.options] == ["a", "b"]
    assert (chat.text, chat.name) == (" a", " a") and chat.chosen == Option(" a", pytest.approx(0.6065, abs=1e-4))


@pytest.mark.parametrize(
    ("choice", "text"),
    [
        ({"text": "x"}, "x"),
        ({"text": "x", "logprobs": None}, "x"),
        ({"delta": {"role": "assistant"}}, ""),
        ({"delta": {"content": None}, "logprobs": {"content": None}}, ""),
        ({"text": "x", "logprobs": {"tokens": ["x"], "token_logprobs": [None], "top_logprobs": None}}, "x"),
    ],
)
def test_what_servers_leave_out(choice: dict[str, Any], text: str) -> None:
    chunk = read_chunk({"choices": [choice]})
    assert chunk.text == text == "".join(token.text for token in chunk.tokens)
    for token in chunk.tokens:
        assert token.chosen is None or math.isnan(token.chosen.after)


def test_a_chunk_with_the_count_of_tokens_only() -> None:
    assert read_chunk({"choices": [], "usage": {"prompt_tokens": 3}}).tokens == []


@pytest.mark.parametrize("choice", [{"text": 3}, {"text": "x", "logprobs": {"content": [{}]}}, {"delta": "x"}, "x"])
def test_what_is_no_chunk(choice: Any) -> None:
    with pytest.raises(ValueError, match="does not follow the protocol"):
        read_chunk({"choices": [choice]})
