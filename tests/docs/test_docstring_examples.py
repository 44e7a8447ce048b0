# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Every example in a docstring runs and prints what it says; trainers have tiny models and rows, not the Hub's."""

import ast
import doctest
import re
from pathlib import Path
from typing import Any

import pytest
from conftest import letter_reward
from datasets import Dataset

import trl_ext


ROOT = Path(trl_ext.__file__).parent
# What stands in a trainer's example, and what a test has time for.
INSTEAD = [
    (r'model="[^"]+"', "model=MODEL"),
    (r'reward_funcs="[^"]+"', "reward_funcs=letter_reward"),
    (r"load_dataset\(.*\)", "ROWS"),
    (r'output_dir="[^"]+"', "output_dir=OUT, max_steps=1, max_completion_length=4, report_to='none'"),
]
ROWS = [{"prompt": "the film", "completions": [" was good", " bad"], "scores": [1.0, 0.0]}] * 4


def examples() -> dict[str, str]:
    """The docstrings with an example, by the file and the name of what they describe."""
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        for node in ast.walk(ast.parse(text)) if ">>> " in text else ():
            if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.Module):
                docstring = ast.get_docstring(node) or ""
                if ">>> " in docstring:
                    name = getattr(node, "name", "module")
                    found[f"{path.relative_to(ROOT).as_posix()}:{name}"] = docstring
    return found


EXAMPLES = examples()
TRAINERS = {name for name, text in EXAMPLES.items() if ".train()" in text}


def parsed(text: str, names: dict[str, Any]) -> doctest.DocTest:
    text = re.sub(r"^\s*```.*$", "", text, flags=re.MULTILINE)  # else the fence counts as output
    test = doctest.DocTestParser().get_doctest(text, names, "example", None, 0)
    assert test.examples
    return test


def failures(text: str) -> str:
    """What went wrong in an example; empty if nothing did."""
    told: list[str] = []
    doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(parsed(text, {}), out=told.append)
    return "".join(told)


def test_the_trainers_have_examples():
    assert {name.split(":")[1] for name in TRAINERS} == {
        "RRHFTrainer",
        "VASTrainer",
        "PSLETrainer",
        "ProxyRLHFTrainer",
    }


@pytest.mark.parametrize("name", sorted(EXAMPLES.keys() - TRAINERS))
def test_an_example_prints_what_it_says(name):
    assert failures(EXAMPLES[name]) == ""


@pytest.mark.parametrize("name", sorted(TRAINERS))
def test_a_trainer_of_an_example_trains(name, tiny_model_dir, tmp_path):
    text = EXAMPLES[name]
    for pattern, instead in INSTEAD:
        text, count = re.subn(pattern, instead, text)
        assert count or instead == "reward_funcs=letter_reward"
    rows = ROWS if "scored.jsonl" in EXAMPLES[name] else [{"prompt": row["prompt"]} for row in ROWS]
    names: dict[str, Any] = {"MODEL": tiny_model_dir, "OUT": str(tmp_path), "letter_reward": letter_reward}
    names["ROWS"] = Dataset.from_list(rows)
    for example in parsed(text, names).examples:  # not as a doctest: training prints
        exec(example.source, names)
    assert names["trainer"].state.global_step == 1


def test_a_wrong_example_is_found():
    assert "Expected" in failures(">>> 1 + 1\n3")
    assert "NameError" in failures(">>> nothing")
    assert failures("```python\n>>> 1 + 1\n2\n```") == ""
