# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
docs/reference/metrics.md has every metric that a training logs.

The names are those of the recorded trainings of all methods (tests/trajectories/, which
tests/test_trajectories.py keeps up to date), and those in the code, for metrics that only some settings log.
"""

import ast
import json
import re
from collections.abc import Iterator

from conftest import REPOSITORY

from trl_ext.evaluation.tables import HEADINGS


PAGE = (REPOSITORY / "docs" / "reference" / "metrics.md").read_text(encoding="utf-8")
REWARDS = re.compile(r"rewards/(letter_reward|imdb-2m-reward)/")
ADDING = ("add", "add_values", "add_deviation", "add_extremes", "add_pairs")


def shown() -> set[str]:
    """The names in the first columns of the tables."""
    cells = re.findall(r"^\| (`.+?) \|", PAGE, flags=re.MULTILINE)
    return {name for cell in cells for name in re.findall(r"`([^`]+)`", cell)}


def recorded() -> set[str]:
    """The names in the logs of trainings, without the prefix of evaluations."""
    recording = min((REPOSITORY / "tests" / "trajectories").glob("*.json"))
    runs = json.loads(recording.read_text())["runs"]
    logged = {name for run in runs.values() for entry in run.get("log", ()) for name in entry}
    return {REWARDS.sub("rewards/<name>/", name.removeprefix("eval_")) for name in logged}


def in_code() -> Iterator[str]:
    """The names that the code gives to meters; parts that are computed are left out."""
    for file in (REPOSITORY / "trl_ext").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in ADDING:
                if "meters" not in ast.unparse(node.func.value):
                    continue
                for argument in (*node.args, *(keyword.value for keyword in node.keywords)):
                    if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
                        yield argument.value


def test_what_trainings_log_is_on_the_page():
    assert not recorded() - shown()


def test_what_the_code_measures_is_on_the_page():
    names = set(in_code())
    assert {"reward_std", "aux_loss", "seconds/update", "val/ratio"} <= names  # the search finds them
    missing = {name for name in names if name not in shown()}
    assert not missing


def test_what_an_evaluation_reports_is_on_the_page():
    assert set(HEADINGS) <= shown()


def test_the_page_has_no_other_names():
    text = "\n".join(file.read_text(encoding="utf-8") for file in (REPOSITORY / "trl_ext").rglob("*.py"))
    known = recorded() | set(in_code())
    of_transformers = re.compile(r"(train|eval)_(loss|runtime|(samples|steps)_per_second)|total_flos")
    for name in shown() - known:
        end = name.split("/")[-1]
        is_computed = end in ("early", "middle", "late", "r2", "correlation", "<name>", "...")
        assert is_computed or of_transformers.fullmatch(name) or f'"{name}"' in text, name
