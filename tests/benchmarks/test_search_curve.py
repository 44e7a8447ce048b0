# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Search with values against best-of-n: the tokens that are counted, and a measurement that goes on where it ended."""

import json

import pytest
import torch
from conftest import make_model, make_tokenizer
from oracles.guided_decoding import make_value

from benchmarks.harness import results
from benchmarks.quality.saved_lines import SavedLines
from benchmarks.quality.search_curve import Search, counted, run, show
from trl_ext.rewards.functions import Reward


def make_search():
    tokenizer = make_tokenizer()
    model = make_model(len(tokenizer))
    model.generation_config.eos_token_id = None  # every completion has six tokens
    tokenizer.eos_token = None
    value = make_value("state", model)
    rewards = [
        Reward("letters", lambda prompts, completions, **_: [float(len(text)) for text in completions]),
        Reward("judge", lambda prompts, completions, **_: [float(text.count("a")) for text in completions]),
    ]
    rows = [{"prompt": "the film was"}, {"prompt": "I thought it"}]
    return Search(
        model, tokenizer, value, rewards, [model, value.backbone], rows, length=6, batch=8, ns=[2, 4],
        beams=[(2, 2)], blocks=[3], betas=[1.0],
    )  # fmt: skip


def test_all_ways_are_measured_and_a_measurement_goes_on(tmp_path, monkeypatch):
    search, file = make_search(), tmp_path / "curve.json"
    measure = search.measure
    made = []

    def fails_at_the_fourth(policy):
        made.append(policy.name)
        if len(made) == 4:
            raise KeyboardInterrupt
        return measure(policy)

    monkeypatch.setattr(search, "measure", fails_at_the_fourth)
    with pytest.raises(KeyboardInterrupt):
        run(search, file, {"seed": 0})
    assert len(json.loads(file.read_text())["lines"]) == 3
    lines = run(search, file, {"seed": 0})
    assert len(made) == 1 + len(lines) == 9
    with pytest.raises(ValueError, match="other settings"):
        SavedLines(file, {"seed": 1})
    assert len(show(lines).splitlines()) == 2 + len(lines)


def test_a_line_of_another_commit_is_kept_and_named(tmp_path, monkeypatch, capsys):
    lines = SavedLines(tmp_path / "lines.json", {})
    lines.add({"name": "a", "beta": 2}, lambda: {"reward": 1.0})
    lines.add({"name": "a", "beta": 2}, lambda: pytest.fail("it is there"))
    assert not capsys.readouterr().err
    monkeypatch.setattr(results, "current_commit", lambda: "ba9876543210")
    kept = SavedLines(tmp_path / "lines.json", {}).add({"name": "a", "beta": 2}, lambda: pytest.fail("it is there"))
    assert kept == {"name": "a", "beta": 2, "reward": 1.0, "commit": "0123456789ab"}
    assert "a, 2: kept, of commit 0123456789ab" in capsys.readouterr().err


def test_tokens_are_counted(tmp_path):
    """Worked by hand: 3 tokens of each prompt and 5 of 6 new ones are read."""
    search = make_search()
    lines = {(line["series"], line["setting"]): line for line in run(search, tmp_path / "curve.json", {})}
    prompt = len(search.tokenizer("the film was")["input_ids"])
    assert prompt == len(search.tokenizer("I thought it")["input_ids"])
    plain = lines["best-of-n by the reward", "n = 1"]["tokens"]
    assert plain == prompt + 5
    # A prompt but its last token is read once for all of its completions.
    assert lines["best-of-n by the reward", "n = 4"]["tokens"] == prompt - 1 + 4 * 6
    pruned = lines["best-of-n by value, half dropped twice", "n = 4"]["tokens"]
    # Rounds of 2 tokens with 4, 2 and 1 texts: the model reads a text and its first token, the value model both.
    read = [texts * (prompt + 2 * number + 1) for number, texts in enumerate((4, 2, 1))]
    valued = [texts * (prompt + 2 * number + 2) for number, texts in enumerate((4, 2, 1))]
    assert sum(read) < pruned <= sum(read) + sum(valued)
    with counted([search.model]) as tokens:
        search.model(input_ids=torch.ones(2, 3, dtype=torch.long))
        search.model(torch.ones(1, 4, dtype=torch.long))
    search.model(torch.ones(1, 4, dtype=torch.long))
    assert tokens == [10]
