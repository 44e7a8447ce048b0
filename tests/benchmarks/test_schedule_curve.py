# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""The curve of guidance of some tokens: its arms, their controls, and a measurement that goes on where it ended."""

import json
from dataclasses import replace

import pytest
from conftest import make_model, make_tokenizer
from oracles.guided_decoding import make_value

from benchmarks.quality.schedule_curve import RANDOM, Curve, run, show
from trl_ext.rewards.functions import Reward


@pytest.fixture(scope="module")
def curve():
    tokenizer = make_tokenizer()
    model = make_model(len(tokenizer))
    rewards = [
        Reward("letters", lambda prompts, completions, **_: [float(len(text)) for text in completions]),
        Reward("judge", lambda prompts, completions, **_: [float(text.count("a")) for text in completions]),
    ]
    rows = [{"prompt": "the film was"}, {"prompt": "I thought it"}, {"prompt": "a good story with"}]
    return Curve(model, tokenizer, make_value("state", model), rewards, rows, betas=[2.0], length=6, top_k=5)


def test_every_arm_has_a_control_of_its_share(curve, tmp_path):
    file = tmp_path / "curve.json"
    lines = run(curve, file, {"seed": 0})
    by_name = {line["name"]: line for line in lines}
    arms = curve.schedules(json.loads(file.read_text())["entropies"])
    assert {name for name in by_name if not name.startswith(RANDOM)} == {"unguided", *arms}
    assert by_name["every 1"]["guided_tokens"] == 1
    assert by_name["every 4"]["guided_tokens"] == pytest.approx(1 / 3, abs=0.15)
    assert by_name["unguided"]["kl"] == pytest.approx(0, abs=1e-4)
    assert by_name["every 1"]["kl"] != by_name["every 4"]["kl"]
    controls = [name.removeprefix(RANDOM) for name in by_name if name.startswith(RANDOM)]
    assert controls == [name for name in arms if 0 < by_name[name]["guided_tokens"] < 1]
    assert len(show(lines).splitlines()) == len(lines) + 2


def test_a_measurement_goes_on_where_it_ended(curve, tmp_path, monkeypatch):
    file, count = tmp_path / "curve.json", 0
    measure = Curve.measure

    def breaks(self, policy):
        nonlocal count
        count += 1
        if count == 4:
            raise KeyboardInterrupt
        return measure(self, policy)

    monkeypatch.setattr(Curve, "measure", breaks)
    with pytest.raises(KeyboardInterrupt):
        run(curve, file, {"seed": 0})
    first = json.loads(file.read_text())["lines"]
    assert len(first) == 3
    lines = run(curve, file, {"seed": 0})
    assert lines[:3] == first
    done = count
    assert run(curve, file, {"seed": 0}) == lines
    assert count == done
    with pytest.raises(ValueError, match="was measured with other settings"):
        run(curve, file, {"seed": 1})


def test_arms_are_chosen_by_their_names(curve, tmp_path):
    file = tmp_path / "curve.json"
    chosen = replace(curve, arms=["every 4"])
    assert [line["name"] for line in run(chosen, file, {})] == ["unguided", "every 4", f"{RANDOM}every 4"]
    more = run(replace(curve, arms=["every 1"], betas=[1.0]), file, {})
    assert [(line["name"], line["beta"]) for line in more[3:]] == [("every 1", 1.0)]
    with pytest.raises(ValueError, match="fifth is in no name of every 1"):
        run(replace(curve, arms=["fifth"]), file, {})
