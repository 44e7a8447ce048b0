# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0
"""The report of the mutation tests, on printed results of mutmut; and that its answers are about code that exists."""

import importlib.util
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest
from conftest import REPOSITORY


@pytest.fixture(scope="module")
def run() -> ModuleType:
    spec = importlib.util.spec_from_file_location("mutation_run", REPOSITORY / "tests" / "mutation" / "run.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["mutation_run"] = module
    spec.loader.exec_module(module)
    return module


RESULTS = """
    trl_ext.a.x_one__mutmut_1: killed
    trl_ext.a.x_one__mutmut_2: timeout
    trl_ext.a.x_one__mutmut_3: survived
    trl_ext.a.xǁSomeǁtwo__mutmut_10: no tests
    trl_ext.b.x__private__mutmut_1: killed
    trl_ext.b.x__private__mutmut_2: not checked
"""
DIFF = """\
# trl_ext.a.x_one__mutmut_3: survived
--- trl_ext/a.py
+++ trl_ext/a.py
@@ -1,2 +1,2 @@
 def one(x):
-    return x  +
-        1
+    return x +
+        2
"""


def test_what_was_noticed_and_what_was_not(run: ModuleType) -> None:
    known = {run.Change("trl_ext.a.one", "return x + 1", "return x + 2"): "They are the same."}
    found = run.modules(RESULTS, lambda mutant: DIFF, known)
    one, other = found["trl_ext.a"], found["trl_ext.b"]
    assert (one.noticed, one.mutants, other.noticed, other.mutants) == (2, 4, 1, 1)
    assert [change.function for change in one.answered] == ["trl_ext.a.one"]
    assert [change.function for change in one.unanswered] == ["trl_ext.a.Some.two"]
    assert run.score(found) == 3 / 5
    text = run.report(found, known)
    assert "| `a` | 4 | 2 | 50.0% | 1 | 1 |" in text and "| all | 5 | 3 | 60.0% | 1 | 1 |" in text
    assert "- `a.one`: ``return x + 1`` became ``return x + 2``. They are the same." in text


def test_names(run: ModuleType) -> None:
    assert run.function_of("trl_ext.b.x__private__mutmut_12") == ("trl_ext.b", "trl_ext.b._private")
    assert run.function_of("trl_ext.b.xǁSomeǁ__init____mutmut_1") == ("trl_ext.b", "trl_ext.b.Some.__init__")
    with pytest.raises(ValueError, match="no name of a mutant"):
        run.function_of("trl_ext.b.function")


def test_a_survivor_without_an_answer_fails(run: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    printed = {"results": "trl_ext.a.x_one__mutmut_3: survived\n" + "trl_ext.a.x_one__mutmut_1: killed\n" * 30}
    monkeypatch.setattr(run, "mutmut", lambda command, *_: printed.get(command, DIFF))
    monkeypatch.setattr(run, "REPORT", tmp_path / "report.md")
    monkeypatch.setattr(run, "answers", dict)
    assert run.main(["--report"]) == 1
    monkeypatch.setattr(run, "answers", lambda: {run.Change("trl_ext.a.one", "return x + 1", "return x + 2"): "Same."})
    assert run.main(["--report"]) == 0
    printed["results"] = printed["results"][: -34 * 20]
    assert run.main(["--report"]) == 1, "under 95 %"


def test_answers_are_about_code_that_exists(run: ModuleType) -> None:
    """An answer whose line has changed is no answer any more."""
    known = run.answers()
    assert known
    for change, reason in known.items():
        path = change.function.split(".")
        files = [REPOSITORY.joinpath(*path[:n]).with_suffix(".py") for n in range(len(path), 0, -1)]
        file = next(file for file in files if file.is_file())
        assert change.before in " ".join(file.read_text(encoding="utf-8").split()), change
        assert change.before != change.after and reason.endswith(".")


def test_every_listed_file_exists() -> None:
    settings = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["mutmut"]
    for pattern in settings["only_mutate"]:
        assert list(REPOSITORY.glob(pattern)), pattern
    for test in settings["pytest_add_cli_args_test_selection"]:
        assert (REPOSITORY / test.partition("::")[0]).is_file(), test
