# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""The settings of the decision process: defaults, what is refused and how, and which processes are exact."""

import itertools

import pytest

from trl_ext.methods.proxy_rlhf.decision_process import FEATURES, DecisionProcess


def test_the_defaults_are_those_of_the_docstring():
    assert DecisionProcess().as_dict() == {
        "top_k": 20,
        "top_p": 1.0,
        "min_p": 0.0,
        "temperature": 1.0,
        "repetition_penalty": 1.0,
        "order": "sampled",
        "feature": "candidate",
        "forced": "first",
        "max_candidates": 0,
    }


def test_the_proxy_reads_one_hidden_state_or_two():
    assert FEATURES == {"candidate": 1, "context": 2}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"top_k": 1},
            "`top_k` must be at least 2, got 1: with a single candidate there is nothing to decide, and examining the "
            "complete vocabulary (0) is not possible. The default is 20, MARA's 40.",
        ),
        ({"top_k": 0}, "`top_k` must be at least 2, got 0"),
        (
            {"max_candidates": 1},
            "`max_candidates` must be 0 (all) or at least 2, got 1: with a single candidate there is nothing to "
            "decide.",
        ),
        ({"max_candidates": -1}, "`max_candidates` must be 0 (all) or at least 2, got -1"),
        (
            {"temperature": 0.0},
            "`temperature` must be positive, got 0.0; for deterministic completions use greedy decisions (`greedy`) "
            "and the descending order.",
        ),
        ({"temperature": -1.0}, "`temperature` must be positive, got -1.0"),
        ({"order": "random"}, "`order` must be one of sampled, descending, got 'random'."),
        ({"feature": "logits"}, "`feature` must be one of candidate, context, got 'logits'."),
        ({"forced": "best"}, "`forced` must be one of first, last, got 'best'."),
        ({"top_k": "many"}, "`top_k`"),
        ({"top_p": 0.0}, "top_p"),
        ({"min_p": 2.0}, "min_p"),
        ({"repetition_penalty": 0.0}, "repetition_penalty"),
    ],
)
def test_what_cannot_be_is_refused_with_a_remedy(settings, message):
    with pytest.raises(ValueError) as caught:
        DecisionProcess(**settings)
    text = str(caught.value)
    assert text == message if message.endswith(".") else message in text


@pytest.mark.parametrize(
    "settings",
    [
        {"top_k": 2},
        {"max_candidates": 2},
        {"max_candidates": 0},
        {"temperature": 0.01},
        {"order": "descending"},
        {"feature": "context"},
        {"forced": "last"},
    ],
)
def test_what_is_at_the_edge_is_taken(settings):
    [(name, value)] = settings.items()
    assert getattr(DecisionProcess(**settings), name) == value


def test_temperature_and_truncation_are_generation_settings():
    values = {"top_k": 7, "top_p": 0.9, "min_p": 0.05, "temperature": 0.7, "repetition_penalty": 1.2}
    found = DecisionProcess(**values).settings()
    assert {name: getattr(found, name) for name in values} == values


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, "top-k 20"),
        ({"top_k": 7, "top_p": 0.9}, "top-k 7, top-p 0.9"),
        ({"min_p": 0.05}, "top-k 20, min-p 0.05"),
        ({"top_p": 0.5, "min_p": 0.1}, "top-k 20, top-p 0.5, min-p 0.1"),
    ],
)
def test_the_candidates_in_words(settings, words):
    assert DecisionProcess(**settings).truncation == words


def test_a_process_is_exact_unless_it_leaves_out_candidates_in_a_random_order():
    """In a random order, what is left out depends on the order: there are too many of these to sum over."""
    for order, most in itertools.product(("sampled", "descending"), (0, 2, 5, 6)):
        exact = DecisionProcess(top_k=5, order=order, max_candidates=most).exact
        assert exact is (order == "descending" or most in (0, 5)), (order, most)
