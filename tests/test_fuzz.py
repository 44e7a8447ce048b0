# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0
"""
Random datasets: each gives a trained step, or an error of ours that says what is wrong.

A few rows of each kind a method, the same in every run; hundreds, and others each time, with `TRL_EXT_LONG=1`.
"""

import math
import tempfile
import traceback
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import LONG, letter_reward
from datasets import Dataset
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from tiny_trainers import METHODS, losses, make_trainer

from trl_ext.training.nonfinite import NonFiniteLossError


FUZZ = settings(
    max_examples=150 if LONG else 3,
    deadline=None,
    derandomize=not LONG,
    database=None,
    suppress_health_check=list(HealthCheck),
)

# Text that files can hold (no halves of surrogate pairs), with what templates, tokenizers and terminals stumble over.
ODD = [
    "",
    " ",
    "\n",
    "\x00",
    "<|im_start|>",
    "<|endoftext|>",
    "{{ x }}",
    "\u202e",
    "e\u0301",
    "🎬" * 3,
    "a" * 5000,
    "电影",
]
TEXTS = st.one_of(st.sampled_from(ODD), st.text(st.characters(exclude_categories=["Cs"]), max_size=12))
CONTENTS = st.one_of(TEXTS, st.none(), st.just([{"type": "text", "text": "hi"}]), st.integers())
ROLES = st.sampled_from(["user", "assistant", "system", "tool", "", "😀"])
MESSAGES = st.lists(st.fixed_dictionaries({"role": ROLES, "content": CONTENTS}), max_size=4)
PROMPTS = st.one_of(TEXTS, MESSAGES, st.none(), st.lists(MESSAGES, max_size=2))
NUMBERS = st.one_of(st.floats(width=32), st.integers(-(2**60), 2**60), st.none(), st.booleans(), st.text(max_size=2))


@st.composite
def scored_rows(draw: Any) -> list[dict[str, Any]]:
    """Rows of K completions, K from row to row, most of them valid; some of them with one error."""
    chat = draw(st.booleans())
    sound = st.sampled_from([" was good", " is", "great!", " 电影", "🎬"])
    rows = []
    for _ in range(draw(st.integers(1, 4))):
        k = draw(st.integers(1, 4))
        answers: list[Any] = [draw(sound) for _ in range(k)]
        scores: Any = draw(st.lists(st.floats(-1e3, 1e3, width=32), min_size=k, max_size=k))
        prompt: Any = "the film" + draw(sound)
        if chat:
            answers = [[{"role": "assistant", "content": text}] for text in answers]
            prompt = [{"role": "user", "content": prompt}]
        rows.append({"prompt": prompt, "completions": answers, "scores": scores})
    fault = draw(st.sampled_from(["none", "prompt", "completion", "score", "count", "empty"]))
    row = rows[draw(st.integers(0, len(rows) - 1))]
    if fault == "prompt":
        row["prompt"] = draw(PROMPTS)
    elif fault == "completion":
        row["completions"][0] = draw(PROMPTS)
    elif fault == "score":
        row["scores"] = [draw(NUMBERS), *row["scores"][1:]]
    elif fault == "count":
        row["scores"] = row["scores"] + [0.0]
    elif fault == "empty":
        row["completions"], row["scores"] = [], []
    return rows


@st.composite
def prompt_rows(draw: Any) -> list[dict[str, Any]]:
    """Rows of a prompt and columns that reward functions are given."""
    chat = draw(st.booleans())
    prompts: list[Any] = [draw(MESSAGES if chat else TEXTS) for _ in range(draw(st.integers(1, 3)))]
    if draw(st.booleans()):
        prompts.append(draw(PROMPTS))
    return [{"prompt": prompt, "answer": draw(TEXTS)} for prompt in prompts]


def of_ours(error: BaseException) -> bool:
    return "/trl_ext/" in traceback.extract_tb(error.__traceback__)[-1].filename


def check(method: str, rows: list[dict[str, Any]], **changes: Any) -> None:
    """Two steps, or an error of ours."""
    try:
        Dataset.from_list(rows)
    except (ValueError, TypeError, OverflowError):
        assume(False)  # no dataset can hold them: Arrow's columns have one type
    with tempfile.TemporaryDirectory() as folder:
        try:
            trainer = make_trainer(method, Path(folder), rows, chat=True, **{"max_steps": 2, **changes})
            trainer.train()
        except (ValueError, TypeError, NonFiniteLossError) as error:
            assert of_ours(error), "".join(traceback.format_exception(error))
            assert len(str(error)) > 20
            return
        assert len(losses(trainer)) == 2 and all(map(math.isfinite, losses(trainer)))
        assert all(torch.isfinite(p).all() for p in trainer.model.parameters())


SOUND = {"prompt": "the film", "completions": [" was good", " is"], "scores": [1.0, 0.0]}
HUGE = {**SOUND, "completions": [" was good" * 4000, " is"]}
CHAT = {
    "prompt": [{"role": "user", "content": "the film"}],
    "completions": [[{"role": "assistant", "content": None}], [{"role": "assistant", "content": "good"}]],
    "scores": [1.0, 0.0],
}


@pytest.mark.slow
@pytest.mark.parametrize("method", ["rrhf", "vas"])
@FUZZ
@example(rows=[SOUND, HUGE])
@example(rows=[CHAT])
@example(rows=[{**SOUND, "scores": [1e38, -1e38]}])
@given(rows=scored_rows())
def test_scored_completions(method: str, rows: list[dict[str, Any]]) -> None:
    check(method, rows, resample_steps=0, reward_funcs=None)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
@FUZZ
@example(rows=[{"prompt": ""}, {"prompt": "the film"}])
@example(rows=[{"prompt": "the film"}, {"prompt": "a" * 5000}])
@example(rows=[{"prompt": [{"role": "user", "content": None}]}])
@example(rows=[{"prompt": [[{"role": "user", "content": "the film"}]]}])
@given(rows=prompt_rows())
def test_prompts(method: str, rows: list[dict[str, Any]]) -> None:
    check(method, rows)


RETURNED = [
    [],
    [1.0],
    "good",
    None,
    [None, None],
    [True, 1],
    [math.inf, 0.0],
    [10**400, 0],
    [[1.0], [2.0]],
    ["1", "2"],
]


@pytest.mark.parametrize("rewards", RETURNED, ids=lambda value: str(value)[:12])
@pytest.mark.parametrize("method", ["rrhf"])  # rewards are read in one place for all of them
def test_what_reward_functions_return(method: str, rewards: Any) -> None:
    def reward(completions: list[Any], **_: Any) -> Any:
        return rewards if not isinstance(rewards, list) or len(rewards) < 2 else rewards * (len(completions) // 2)

    check(method, [{"prompt": "the film"}, {"prompt": "music"}], reward_funcs=reward)


def test_an_error_that_is_not_ours_is_noticed() -> None:
    """The test above can fail."""
    with pytest.raises(ValueError) as caught:
        int("x")
    assert not of_ours(caught.value)
    assert letter_reward(["o"]) == [1.0]
