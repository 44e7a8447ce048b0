# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0
"""What the mutation tests run and report, without mutmut; and that the answers are about code that exists."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

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


DIFF = """\
--- trl_ext/a.py
+++ trl_ext/a.py
@@ -1,2 +1,2 @@
 def one(x):
-    return x  +
-        1
+    return x +
+        2
"""
FOUND = {
    "mutants": 9,
    "results": {
        "trl_ext.a.x_one__mutmut_1": {"status": "killed", "diff": ""},
        "trl_ext.a.x_one__mutmut_2": {"status": "timeout", "diff": ""},
        "trl_ext.a.x_one__mutmut_3": {"status": "survived", "diff": DIFF},
        "trl_ext.a.xǁSomeǁtwo__mutmut_10": {"status": "no tests", "diff": DIFF},
        "trl_ext.a.x_one__mutmut_4": {"status": "skipped", "diff": ""},
    },
}
SAME = {"function": "trl_ext.a.one", "before": "return x + 1", "after": "return x + 2"}


@pytest.fixture
def project(run: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with two files to change, whose mutation takes no time: `run.calls` has what was asked for."""
    (tmp_path / "trl_ext").mkdir()
    for name in ("a", "b"):
        (tmp_path / "trl_ext" / f"{name}.py").write_text("def one(x):\n    return x + 1\n")
        (tmp_path / f"test_{name}.py").write_text("")
    listed = {f"trl_ext/{name}.py": [f"test_{name}.py::test"] for name in ("a", "b")}
    (tmp_path / "modules.yaml").write_text(json.dumps(listed))
    for name, file in (("RESULTS", "results.json"), ("REPORT", "report.md"), ("FILES", "modules.yaml")):
        monkeypatch.setattr(run, name, tmp_path / file)
    monkeypatch.setattr(run, "answers", dict)
    contents = run.contents_of
    monkeypatch.setattr(run, "contents_of", lambda file, tests: contents(file, tests, tmp_path))
    monkeypatch.setattr(run, "calls", [], raising=False)

    def run_file(file: str, tests: list[str], names: list[str], options: Any) -> dict[str, Any]:
        run.calls.append((file, names, options.per_module, options.seed))
        if names:
            return FOUND | {"results": {name: {"status": "killed", "diff": ""} for name in names}}
        return FOUND

    monkeypatch.setattr(run, "run_file", run_file)
    return tmp_path


def test_what_was_noticed_and_what_was_not(run: ModuleType) -> None:
    found = run.outcome(FOUND, "1234", 5)
    assert (found.mutants, found.tried, found.noticed, found.seed) == (9, 4, 2, 5)
    assert list(found.survivors) == ["trl_ext.a.x_one__mutmut_3", "trl_ext.a.xǁSomeǁtwo__mutmut_10"]
    assert run.share([found]) == 0.5
    again = {"mutants": 9, "results": {"trl_ext.a.x_one__mutmut_3": {"status": "killed", "diff": ""}}}
    later = run.outcome(again, "1235", 5, found)
    assert (later.tried, later.noticed, list(later.survivors)) == (4, 3, ["trl_ext.a.xǁSomeǁtwo__mutmut_10"])
    assert later.contents == "1234"  # the two that were noticed were so by the tests of then


def test_the_report_has_counts_samples_and_answers(run: ModuleType, project: Path) -> None:
    found = run.outcome(FOUND, "1234", 5)
    text = run.report({"trl_ext/a.py": found}, {run.Change(**SAME): "They are the same."})
    assert f"| `a.py` | 9 | 4 | 2 | 50.0% | 1 | 1 | 5 | {found.date} |" in text
    assert "| all | 9 | 4 | 2 | 50.0% | 1 | 1 |" in text
    assert "- `a.one`: ``return x + 1`` became ``return x + 2``. They are the same." in text
    assert "- `a.Some.two`: ``return x + 1`` became ``return x + 2``\n" in text
    assert "Not run yet: `trl_ext/b.py`." in text


def test_names(run: ModuleType) -> None:
    assert run.function_of("trl_ext.b.x__private__mutmut_12") == "trl_ext.b._private"
    assert run.function_of("trl_ext.b.xǁSomeǁ__init____mutmut_1") == "trl_ext.b.Some.__init__"
    with pytest.raises(ValueError, match="no name of a mutant"):
        run.function_of("trl_ext.b.function")


def test_what_is_done_is_left_out_until_it_or_its_tests_change(run: ModuleType, project: Path) -> None:
    sample = ["--per_module", "4", "--seed", "5"]
    run.main(sample)
    assert [call[0] for call in run.calls] == ["trl_ext/a.py", "trl_ext/b.py"]
    assert run.calls[0] == ("trl_ext/a.py", [], 4, 5)
    run.calls.clear()
    run.main(sample)
    assert run.calls == []
    (project / "test_b.py").write_text("def test(): pass")
    run.main(sample)
    assert [call[0] for call in run.calls] == ["trl_ext/b.py"]
    run.calls.clear()
    run.main(["--per_module", "4", "--seed", "6", "--files", "a.py"])  # another sample
    run.main(["--files", "a.py"])  # and all changes
    run.main([*sample, "--again", "--files", "b.py"])
    assert [call[0] for call in run.calls] == ["trl_ext/a.py", "trl_ext/a.py", "trl_ext/b.py"]


def test_a_sample_depends_on_the_seed_alone(run: ModuleType) -> None:
    names = [f"trl_ext.a.x_one__mutmut_{number}" for number in range(1, 31)]
    sample = run.chosen(names, 10, 0)
    assert len(set(sample)) == 10 and set(sample) < set(names)
    assert sample == run.chosen(names[::-1], 10, 0) != run.chosen(names, 10, 1)
    assert run.chosen(names, 0, 0) == run.chosen(names, 30, 0) == sorted(names)


def test_survivors_alone_run_again(run: ModuleType, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run.main(["--per_module", "4", "--files", "a.py"])
    monkeypatch.setattr(run, "answers", lambda: {run.Change(**SAME): "Same."})
    run.calls.clear()
    run.main(["--survivors"])
    assert run.calls == [("trl_ext/a.py", ["trl_ext.a.xǁSomeǁtwo__mutmut_10"], 0, 0)]
    found = run.read_results(run.RESULTS)["trl_ext/a.py"]
    assert (found.tried, found.noticed) == (4, 3)
    run.calls.clear()
    run.main(["--survivors"])
    assert run.calls == []


def test_survivors_of_other_code_are_other_changes(
    run: ModuleType, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """mutmut numbers the changes of a file: after an edit, number 3 is another one. With other tests it is not."""
    run.main(["--files", "a.py"])
    (project / "test_a.py").write_text("def test(): pass")
    run.calls.clear()
    run.main(["--survivors", "--files", "a.py"])
    assert len(run.calls[0][1]) == 2
    assert "Changed since they ran: trl_ext/a.py." in capsys.readouterr().out
    run.main(["--files", "a.py"])
    assert run.calls[1][1] == [], "what older tests have noticed counts for nothing beside the new ones"
    assert "Changed since" not in capsys.readouterr().out
    (project / "trl_ext" / "a.py").write_text("def one(x):\n    return 1 + x\n")
    run.main(["--survivors", "--files", "a.py"])
    assert run.calls[2][1] == [] and "has changed since" in capsys.readouterr().out


def test_a_survivor_without_an_answer_fails(run: ModuleType, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = run.Outcome("1234", "2026-01-02", 40, 40, 0, 39, {"trl_ext.a.x_one__mutmut_3": SAME})
    run.write_results(run.RESULTS, {"trl_ext/a.py": found})
    assert run.main(["--report"]) == 1
    monkeypatch.setattr(run, "answers", lambda: {run.Change(**SAME): "Same."})
    assert run.main(["--report"]) == 0 and run.calls == []
    found.tried = 10
    found.noticed = 9
    run.write_results(run.RESULTS, {"trl_ext/a.py": found})
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


def test_every_listed_file_exists(run: ModuleType) -> None:
    for file, tests in run.files().items():
        assert (REPOSITORY / file).is_file(), file
        assert tests and all((REPOSITORY / test.partition("::")[0]).is_file() for test in tests), file


def test_the_report_is_that_of_the_results(run: ModuleType) -> None:
    results = run.read_results(run.RESULTS)
    assert run.REPORT.read_text(encoding="utf-8") == run.report(results, run.answers()), "run with --report"
    for file, found in results.items():
        assert file in run.files() and found.tried - found.noticed == len(found.survivors), file
