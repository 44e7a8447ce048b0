# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""What counts as a change of the code that a suite measures; expected sets are read off the small packages below."""

import pytest
from conftest import REPOSITORY

from benchmarks import report, run
from benchmarks.harness.measured_code import Code, changes, reached, reference, stamp
from benchmarks.speed import rrhf_step


MEASURE = "benchmarks.suite_a:measure"
FILES = {
    "pyproject.toml": """
        [project]
        name = "trl-ext"
        [project.entry-points."trl_ext.methods"]
        psle = "trl_ext.psle:METHOD"
    """,
    "benchmarks/__init__.py": """
        import os
        os.environ.setdefault("OMP_NUM_THREADS", "1")
    """,
    "benchmarks/suite_a.py": """
        from trl_ext.losses import loss as the_loss
        HERE = Path(__file__).resolve().parent
        def measure(case):
            from .clock import timed
            import trl_ext.rows
            return timed(the_loss, trl_ext.rows.build, HERE)
        def report(results):
            return "a table"
    """,
    "benchmarks/suite_b.py": """
        from trl_ext import PSLETrainer
        def measure(case: Case):
            return PSLETrainer()
    """,
    "benchmarks/suite_c.py": """
        def measure(case):
            run(["-m", "benchmarks.driver"])
    """,
    "benchmarks/suite_d.py": """
        from trl_ext.method import discover
        def measure(case):
            discover()
    """,
    "benchmarks/driver.py": """
        def main():
            return ROUNDS
        ROUNDS = 5
        LINES = [ROUNDS for ROUNDS in ()]
    """,
    "benchmarks/clock.py": """
        def timed(*parts):
            return 1
    """,
    "trl_ext/__init__.py": '''
        """Names are imported when they are first used."""
        def __getattr__(name):
            return everything(name)
    ''',
    "trl_ext/losses.py": '''
        """Losses."""
        import torch
        SCALE = 2.0
        def loss(x: int) -> int:
            """Twice x."""
            if x < 0:
                raise ValueError(f"x must not be negative, got {x}.")
            total: int = SCALE * x  # twice
            return total
        def other_loss(x):
            return 3 * x
    ''',
    "trl_ext/rows.py": """
        class Rows:
            width: int = field(default=1, metadata={"help": "Columns of a row."})
        def build():
            return Rows()
    """,
    "trl_ext/method.py": """
        def discover():
            return entry_points(group="trl_ext.methods")
    """,
    "trl_ext/psle/__init__.py": """
        METHOD = Method(trainer="trl_ext.psle.trainer:PSLETrainer")
    """,
    "trl_ext/psle/trainer.py": """
        class PSLETrainer(Base):
            def compute_loss(self):
                return 0.5
        class Base:
            beta = 0.1
    """,
}


def code(folder, edits=(), files=FILES):
    """The packages above after (file, old, new) edits."""
    files = dict(files)
    for file, old, new in edits:
        assert old in files[file]
        files[file] = files[file].replace(old, new)
    for file, text in files.items():
        path = folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = text.strip("\n").splitlines()
        path.write_text("\n".join(line[8 if "toml" not in file else 0 :] for line in lines).replace("        [", "["))
    return Code(folder)


@pytest.fixture
def before(tmp_path):
    return code(tmp_path / "before")


def names(found):
    return {name.partition(": ")[2] for name in found.values()}


def test_names_are_followed_through_imports_to_definitions(before):
    assert names(before.reached([MEASURE])) == {
        *("measure", "HERE", "timed"),  # the suite's own and, by an import inside the function, the clock
        *("loss", "SCALE", "build", "Rows"),
        "a statement",  # of benchmarks/__init__.py, which sets the threads
    }


def test_a_public_name_leads_to_the_module_that_has_it(before):
    found = names(before.reached(["benchmarks.suite_b:measure"]))
    assert found == {"measure", "PSLETrainer", "Base", "a statement"}  # not `__getattr__`, nor what annotates


def test_a_module_that_a_command_runs_is_reached(before):
    assert names(before.reached(["benchmarks.suite_c:measure"])) == {"measure", "main", "ROUNDS", "a statement"}


def test_an_entry_point_leads_to_the_method_and_its_trainer(before):
    found = names(before.reached(["benchmarks.suite_d:measure"]))
    assert found == {"measure", "discover", "METHOD", "PSLETrainer", "Base", "a statement"}


def test_an_unknown_definition_is_named(before):
    with pytest.raises(ValueError, match=r"'benchmarks.suite_a:mesure' is not defined in"):
        before.reached(["benchmarks.suite_a:mesure"])


@pytest.mark.parametrize(
    "edit",
    [
        pytest.param(("trl_ext/losses.py", "Twice x.", "Two times x."), id="docstring"),
        pytest.param(("trl_ext/losses.py", "# twice", "# two times"), id="comment"),
        pytest.param(("trl_ext/losses.py", "must not be negative", "is at least 0"), id="message"),
        pytest.param(("trl_ext/losses.py", "x: int) -> int", "x: float) -> float"), id="annotation"),
        pytest.param(("trl_ext/losses.py", "total: int =", "total ="), id="annotation-of-a-variable"),
        pytest.param(("trl_ext/losses.py", "import torch", "import torch, math"), id="import"),
        pytest.param(("trl_ext/rows.py", "Columns of", "Width of"), id="help"),
        pytest.param(("trl_ext/losses.py", "3 * x", "4 * x"), id="a-function-that-is-not-reached"),
        pytest.param(("trl_ext/psle/trainer.py", "0.5", "0.7"), id="a-class-that-is-not-reached"),
        pytest.param(("benchmarks/suite_a.py", "a table", "another"), id="the-tables"),
        pytest.param(("benchmarks/suite_a.py", ".parent", ".parent.parent"), id="the-place-of-a-file"),
    ],
)
def test_what_changes_no_figure_is_no_change(before, tmp_path, edit):
    after = code(tmp_path / "after", [edit])
    assert after.reached([MEASURE]).keys() == before.reached([MEASURE]).keys()


@pytest.mark.parametrize(
    ("edit", "changed"),
    [
        (("trl_ext/losses.py", "SCALE = 2.0", "SCALE = 2.5"), {"SCALE"}),
        (("trl_ext/losses.py", "x < 0", "x < 1"), {"loss"}),
        (("trl_ext/rows.py", "default=1", "default=2"), {"Rows"}),
        (("benchmarks/clock.py", "return 1", "return 2"), {"timed"}),
        (("benchmarks/__init__.py", '"1"', '"2"'), {"a statement"}),
    ],
)
def test_a_number_that_is_reached_is_a_change(before, tmp_path, edit, changed):
    then, now = before.reached([MEASURE]), code(tmp_path / "after", [edit]).reached([MEASURE])
    assert {now[fingerprint].partition(": ")[2] for fingerprint in now.keys() - then.keys()} == changed
    assert stamp(then)["digest"] != stamp(now)["digest"]
    assert changes(stamp(then), now) == "1 of 8 definitions that it ran through have changed since"
    assert changes(stamp(then), then) == "code unchanged since"


def test_definitions_may_move(before, tmp_path):
    """Files to folders, a function to another file, other ways to import, and the strings that name modules."""
    files = dict(FILES)
    files["benchmarks/speed/__init__.py"] = ""
    files["benchmarks/speed/suite_a.py"] = files.pop("benchmarks/suite_a.py")
    files["benchmarks/speed/suite_c.py"] = files.pop("benchmarks/suite_c.py")
    files["benchmarks/speed/driver.py"] = files.pop("benchmarks/driver.py")
    files["trl_ext/training/losses.py"] = files.pop("trl_ext/losses.py").replace("        SCALE = 2.0\n", "")
    files["trl_ext/training/scale.py"] = "        SCALE = 2.0"
    files["trl_ext/training/__init__.py"] = ""
    files["trl_ext/methods/psle/__init__.py"] = files.pop("trl_ext/psle/__init__.py")
    files["trl_ext/methods/psle/trainer.py"] = files.pop("trl_ext/psle/trainer.py")
    a = "benchmarks/speed/suite_a.py"
    edits = [
        (a, "from trl_ext.losses import loss as the_loss", "from trl_ext.training.losses import loss"),
        (a, "the_loss", "loss"),
        (a, "from .clock", "from ..clock"),
        (a, "import trl_ext.rows", "from trl_ext.rows import build"),
        (a, "trl_ext.rows.build,", "build,"),
        ("benchmarks/speed/suite_c.py", "benchmarks.driver", "benchmarks.speed.driver"),
        ("trl_ext/training/losses.py", "import torch", "from .scale import SCALE"),
        ("trl_ext/methods/psle/__init__.py", "trl_ext.psle.trainer", "trl_ext.methods.psle.trainer"),
        ("pyproject.toml", "trl_ext.psle:", "trl_ext.methods.psle:"),
    ]  # fmt: skip
    after = code(tmp_path / "after", edits, files)
    for suite in "abcd":
        name = f"suite_{suite}:measure"
        then = before.reached([f"benchmarks.{name}"])
        now = after.reached([f"benchmarks.{'speed.' if suite in 'ac' else ''}{name}"])
        assert stamp(then) == stamp(now), suite


def test_what_is_not_in_the_history_is_not_said_to_be_unchanged():
    assert changes({"digest": "0123456789abcdef"}, []) == "whether it has changed since is unknown"


def test_every_suite_reaches_its_trainer_or_model():
    found = {}
    for suite in run.SUITES:
        found[suite] = names(reached(run.suite_of(suite).measures(), REPOSITORY))
    assert {"RRHFTrainer", "PSLETrainer", "VASTrainer", "ProxyRLHFTrainer"} <= found["quality"]  # by the command line
    assert {"PSLETrainer", "VASTrainer", "ProxyRLHFTrainer"} <= found["imdb"]
    assert {"LogProbs", "ranking_loss", "CascadeAttention"} <= found["rrhf_step"]
    assert {"PSLETrainer", "RRHFTrainer", "ValueModel"} <= found["scaling"]  # by processes of its own
    assert "ProxyRLHFTrainer" in found["ppo_round"] and "ShapeOnlyMode" in found["card_count"]
    assert not [suite for suite, defined in found.items() if "report" in defined]


def test_the_report_says_of_each_result_whether_its_code_has_changed(capsys):
    assert reference(rrhf_step.measure) == "benchmarks.speed.rrhf_step:measure"
    assert report.main(["--changes", "rrhf_step"]) == 0
    lines = capsys.readouterr().out.splitlines()
    told = [line for line in lines if not line.startswith("    ")]
    assert len(told) == len(list(report.RESULTS.glob("*.json")))
    assert all(line.endswith(("code unchanged since", "have changed since", "is unknown")) for line in told)
