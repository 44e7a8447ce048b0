# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""A day on a GPU: order, time limits, failures, going on after a kill, and its page. Parts are mocks."""

import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import textwrap
import time
from pathlib import Path

import pytest
from conftest import HANGS, REPOSITORY
from transformers import AutoTokenizer

from benchmarks.gpu_day import day, page, tiny_chat, worker
from benchmarks.gpu_day.day import DONE, INCOMPLETE, SKIPPED, STOPPED
from benchmarks.gpu_day.parts import SUITES, Part
from benchmarks.harness import results
from benchmarks.harness.suite import TimedSuite
from benchmarks.memory import card_memory
from benchmarks.memory.card_memory import CardSuite
from benchmarks.run import suite_of
from benchmarks.speed import first_run, rrhf_step
from benchmarks.speed.rrhf_workload import CASCADE, TRL_ROWS


pytestmark = pytest.mark.skipif(os.name != "posix", reason="processes are ended by their group")

# The process of a mock part: its suite says what it does. It writes a result file as suites do.
MOCK = """
import json, os, pathlib, signal, subprocess, sys, threading, time

suite, begun = sys.argv[1], time.time()
if suite == "import_error":
    raise ImportError("no module of this name")
line = sys.stdin.readline()
if not line:
    sys.exit(0)
words = json.loads(line)
output, label = (pathlib.Path(words[words.index(f"--{name}") + 1]) if name == "output" else
                 words[words.index(f"--{name}") + 1] for name in ("output", "label"))
with (output / "turns").open("a") as turns:
    turns.write(json.dumps([suite, begun, time.time(), words]) + "\\n")
def end_with_the_day():
    sys.stdin.read()
    os.killpg(0, signal.SIGKILL)
threading.Thread(target=end_with_the_day, daemon=True).start()
def write(name):
    file = output / f"2026-01-01-{suite}-cpu-{name}.json"
    file.write_text(json.dumps({"suite": suite, "time": "2026-01-01", "label": label, "cases": [{"name": name}]}))
write("first")
if suite == "fails":
    print("not measured: second: OutOfMemoryError: CUDA out of memory")
    sys.exit(1)
if suite == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
if suite == "hangs":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    (output / "pids").write_text(f"{os.getpid()} {child.pid}")
    time.sleep(600)
write("second")
"""


@pytest.fixture
def mocks(tmp_path, monkeypatch):
    """Parts that are mocks, in a folder where their turns are written down."""
    (tmp_path / "mock.py").write_text(MOCK)
    monkeypatch.setattr(day.Worker, "command", (sys.executable, str(tmp_path / "mock.py")))
    monkeypatch.setattr(day, "GRACE", 0.3)
    monkeypatch.setattr(day, "RESERVE", 0.0)
    monkeypatch.setattr(day, "REHEARSAL", 1.0)
    return tmp_path


def part(name, suite="works", **settings):
    return Part(name, f"What about {name}?", suite, **{"least": 0.0, "most": 60.0, **settings})


def run_day(folder, monkeypatch, parts, *words, clock=time.monotonic):
    """A rehearsal with these parts: its status, and its result."""
    monkeypatch.setitem(day.SUITES, "speed", tuple(parts))
    places = ["--output", str(folder), "--work", str(folder / "work")]
    options = day.parser().parse_args(["--rehearse", "--minutes", "10", *places, *words])
    status = day.Day(options, clock=clock).run()
    return status, results.read_results("gpu_day", folder)[-1]


def turns(folder):
    return [json.loads(line) for line in (folder / "turns").read_text().splitlines()]


def states(result):
    return {case["name"]: case["metrics"]["state"] for case in result["cases"]}


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return "Z" not in subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True).stdout


def wait_for(condition, seconds=HANGS):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)


# --------------------------------------------------------------------------------------------------------------- a day


def test_parts_run_in_order_and_the_next_imports_meanwhile(mocks, monkeypatch):
    status, result = run_day(mocks, monkeypatch, [part("a", "one"), part("b", "two"), part("c", "three")])
    assert status == 0 and list(states(result).items()) == [("a", DONE), ("b", DONE), ("c", DONE)]
    (one, _, turn_of_one, words), (two, begun_two, turn_of_two, _), (three, *_) = turns(mocks)
    assert [one, two, three] == ["one", "two", "three"]
    assert turn_of_one < turn_of_two and begun_two < turn_of_two
    assert words[words.index("--label") + 1] == result["label"] and "--rehearse" in words
    assert "--allow_dirty" in words  # asked once, when the day began: a later edit costs no part
    assert result["cases"][0]["metrics"]["measured"] == ["first", "second"]
    assert result["settings"]["kind"] == {"suite": "speed", "rehearsal": True}
    results.check_result(result)


def test_a_part_that_fails_prints_its_error_and_the_next_runs(mocks, monkeypatch, capsys):
    parts = [part("a", "fails"), part("b", "import_error"), part("c", "killed"), part("d")]
    status, result = run_day(mocks, monkeypatch, parts)
    assert status == 1
    assert states(result) == {"a": INCOMPLETE, "b": INCOMPLETE, "c": INCOMPLETE, "d": DONE}
    reasons = [case["metrics"]["reason"] for case in result["cases"]]
    assert reasons[0] == "second: OutOfMemoryError: CUDA out of memory"
    assert reasons[1] == "ImportError: no module of this name" and "killed by signal 9" in reasons[2]
    assert [case["metrics"]["measured"] for case in result["cases"][::2]] == [["first"], ["first"]]
    assert "OutOfMemoryError" in capsys.readouterr().out


def test_parts_ask_no_hub(mocks, monkeypatch, tmp_path):
    """On a machine without a network each question would wait, and the day is ten minutes."""
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    program = "import os; print(os.environ['HF_HUB_OFFLINE'])"
    monkeypatch.setattr(day.Worker, "command", (sys.executable, "-c", program))
    process = day.Worker(part("a"), tmp_path / "a.log")
    assert process.run([], HANGS) == 0 and (tmp_path / "a.log").read_text() == "1\n"


def test_a_part_that_hangs_is_ended_with_what_it_started_and_goes_on_last(mocks, monkeypatch):
    status, result = run_day(mocks, monkeypatch, [part("a", "hangs", most=1.0), part("b")])
    assert status == 1 and states(result) == {"a": STOPPED, "b": DONE}
    assert [turn[0] for turn in turns(mocks)] == ["hangs", "works", "hangs"]
    assert result["cases"][0]["metrics"]["reason"] == "ended after 1 s"
    assert result["cases"][0]["metrics"]["measured"] == ["first"]
    for pid in map(int, (mocks / "pids").read_text().split()):
        wait_for(lambda pid=pid: not alive(pid))


def test_what_is_too_long_for_the_time_that_is_left_is_skipped_and_shorter_parts_run(mocks, monkeypatch):
    """Of 600 s, the mocked clock has 25 left: 30 are too many, 20 are not."""
    monkeypatch.setattr(day.Day, "left", lambda self: 25.0)
    parts = [part("a", least=30), part("b", least=20)]
    monkeypatch.setitem(day.SUITES, "speed", tuple(parts))
    options = day.parser().parse_args(["--output", str(mocks), "--work", str(mocks / "work"), "--allow_dirty"])
    monkeypatch.setattr("trl_ext.devices.default_device", lambda: results.torch.device("cuda"))
    monkeypatch.setattr(results, "device_name", lambda device: "a GPU")
    assert day.Day(options).run() == 1
    result = results.read_results("gpu_day", mocks)[-1]
    assert states(result) == {"a": SKIPPED, "b": DONE}
    assert result["cases"][0]["metrics"]["reason"] == "needs about 30 s, and 25 s were left"
    assert result["device"] == "a-gpu" and turns(mocks)[0][3][-3:-1] == ["--label", result["label"]]


def test_the_same_command_goes_on_with_what_is_not_done(mocks, monkeypatch, capsys):
    _, first = run_day(mocks, monkeypatch, [part("a"), part("b", "fails"), part("c")], "--parts", "a", "b")
    status, second = run_day(mocks, monkeypatch, [part("a"), part("b", "works"), part("c")])
    assert status == 0 and second["label"] == first["label"]
    assert [turn[0] for turn in turns(mocks)] == ["works", "fails", "works", "works"]
    assert len(results.read_results("gpu_day", mocks)) == 1 and set(states(second)) == {"a", "b", "c"}
    run_day(mocks, monkeypatch, [part("a"), part("b"), part("c")])
    assert len(turns(mocks)) == 4 and "everything is measured" in capsys.readouterr().out
    _, again = run_day(mocks, monkeypatch, [part("a")], "--fresh")
    assert again["label"] >= first["label"] and len(results.read_results("gpu_day", mocks)) == 2


def test_another_commit_is_measured_from_the_beginning(mocks, monkeypatch):
    run_day(mocks, monkeypatch, [part("a")], "--parts", "a")
    monkeypatch.setattr(results, "current_commit", lambda: "ba9876543210")
    _, second = run_day(mocks, monkeypatch, [part("a"), part("b")])
    assert [turn[0] for turn in turns(mocks)] == ["works", "works", "works"]
    assert second["environment"]["commit"] == "ba9876543210" and set(states(second)) == {"a", "b"}
    assert len(results.read_results("gpu_day", mocks)) == 2


def test_a_day_that_is_killed_ends_its_part_loses_nothing_and_goes_on(mocks, monkeypatch):
    """SIGKILL, which no process can handle: the part notices that its input has ended."""
    program = f"""
        import sys
        sys.path[:0] = {[str(REPOSITORY)]!r}
        from benchmarks.gpu_day import day
        from benchmarks.gpu_day.parts import Part
        from benchmarks.harness import results
        results.current_commit = lambda: "0123456789ab"
        day.Worker.command = (sys.executable, {str(mocks / "mock.py")!r})
        parts = (Part("a", "", "works", least=0), Part("b", "", "hangs", least=0))
        day.SUITES["speed"] = parts
        day.main(["--rehearse", "--output", {str(mocks)!r}, "--work", {str(mocks / "work")!r}])
    """
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(program)], cwd=REPOSITORY)
    wait_for((mocks / "pids").exists)
    process.send_signal(signal.SIGKILL)
    process.wait()
    for pid in map(int, (mocks / "pids").read_text().split()):
        wait_for(lambda pid=pid: not alive(pid))
    (killed,) = results.read_results("gpu_day", mocks)
    assert states(killed) == {"a": DONE}
    _, result = run_day(mocks, monkeypatch, [part("a"), part("b")])
    assert states(result) == {"a": DONE, "b": DONE} and result["label"] == killed["label"]
    assert [turn[0] for turn in turns(mocks)] == ["works", "hangs", "works"]


def test_an_archive_has_the_results_of_the_day_and_the_logs(mocks, monkeypatch):
    (mocks / "2025-01-01-other-cpu.json").write_text(json.dumps({"suite": "other", "label": "", "time": ""}))
    run_day(mocks, monkeypatch, [part("a")], "--archive", str(mocks / "day.tar.gz"))
    with tarfile.open(mocks / "day.tar.gz") as archive:
        names = archive.getnames()
    assert "work/a.log" in names and len([name for name in names if "-gpu_day-" in name]) == 1
    assert len([name for name in names if "-works-" in name]) == 2 and not any("other" in name for name in names)


def test_without_a_gpu_there_is_no_day(mocks, monkeypatch):
    monkeypatch.setattr("trl_ext.devices.default_device", lambda: results.torch.device("cpu"))
    monkeypatch.setitem(day.SUITES, "speed", (part("a"),))
    with pytest.raises(SystemExit, match=r"There is no GPU here\. `--rehearse`"):
        day.Day(day.parser().parse_args(["--output", str(mocks), "--work", str(mocks / "work")])).run()
    with pytest.raises(SystemExit, match="there are a"):
        day.Day(day.parser().parse_args(["--parts", "z", "--output", str(mocks)]))


def test_the_chat_comparison_has_a_day_of_its_own(mocks, monkeypatch):
    """Its own time limit is shorter than that of its process, so that it writes its result itself."""
    options = day.parser().parse_args(["--suite", "chat", "--output", str(mocks), "--work", str(mocks / "work")])
    monkeypatch.setattr(day, "GRACE", 5.0)
    chat = day.Day(options, ["--model", "a-model"])
    words = chat.arguments(chat.parts[0], 600.0)
    assert words[words.index("--time_limit") + 1] == "580" and words[-2:] == ["--model", "a-model"]
    assert words[words.index("--work") + 1] == str(mocks / "work" / "chat") and "--label" not in words


def test_a_rehearsal_of_the_chat_comparison_has_a_tiny_model(mocks, monkeypatch):
    """Last words of the command line count: they replace those of the preset."""
    pytest.importorskip("textstat", reason="the extra `instructions` is not installed")
    options = day.parser().parse_args(["--suite", "chat", "--rehearse", "--output", str(mocks), "--work", str(mocks)])
    tiny_chat.write(mocks / "tiny", REPOSITORY / "recipes" / "instructions" / "prompts_train.jsonl")
    words = day.Day(options).arguments(SUITES["chat"][0], 600.0)
    taken = []

    def run_all(jobs, bench, processes, limit):
        taken.extend([bench.task, processes, limit])
        return False

    monkeypatch.setattr("benchmarks.quality.experiment.run_all", run_all)
    monkeypatch.setattr("benchmarks.quality.comparison.Comparison.measures", lambda self: {Part})
    suite_of("chat").main([*words, "--work", str(mocks / "chat")])
    task, processes, limit = taken
    assert (task.rows * task.num_generations, task.max_completion_length, processes, limit) == (64, 8, 4, 599.0)
    tokenizer = AutoTokenizer.from_pretrained(task.model)
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True
    )
    assert text == "user: Hi\nassistant: "
    assert len(Path(task.train).read_text().splitlines()) == 32 and len(Path(task.other).read_text().splitlines()) == 4


# ---------------------------------------------------------------------------------------------------- parts, processes


@pytest.mark.parametrize("each", [*SUITES["speed"]], ids=lambda each: each.name)
def test_a_part_has_cases_for_a_gpu_and_a_tiny_form_of_each(each, monkeypatch, tmp_path):
    """As the command line selects them; names of tiny cases stay different, or going on would leave some out."""
    found = []

    def run(self, cases, device, options):
        found.extend(cases)
        return True

    for kind in (TimedSuite, CardSuite, first_run.FirstRun):
        monkeypatch.setattr(kind, "run", run)
    words = [*each.arguments, "--rehearse", "--label", "x", "--output", str(tmp_path)]
    assert suite_of(each.suite).main(words) == 0
    assert found and len({case.name for case in found}) == len(found)
    for case in found:
        assert getattr(case, "device", "cpu") == "cpu" and getattr(case, "model", "tiny") == "tiny"


def test_the_goals_come_first_and_cover_what_is_asked():
    """Memory on four sizes of card for the four methods; the ratios of the goals."""
    cards = {(case.method, case.card) for case in card_memory.cases() if case.card}
    assert cards == {(m, gb) for m in ("RRHF", "PSLE", "Proxy-RLHF", "VAS") for gb in (8, 12, 16, 24)}
    wanted = {(goal.suite, goal.figure, goal.value) for goal in page.goals()}
    rows = f"{TRL_ROWS} / {CASCADE}"
    assert {("rrhf_step", rows, value) for value in (1.75, 2.6, 1.85, 2.8, 3.4)} <= wanted
    assert ("card_memory", "reserved", 7.5) in wanted
    for form, value in (("form `state`", 1.3), ("form `state`", 1.4), ("form `state`, every 4", 1.1)):
        assert ("graph_decode", f"VAS, {form} / unguided", value) in wanted
    assert ("graph_decode", "Proxy-RLHF, k = 4 / unguided", 1.05) in wanted
    assert {"sampling", "psle_step", "proxy_update"} <= {suite for suite, _, _ in wanted}
    order = [each.suite for each in SUITES["speed"]]
    assert order[:2] == ["first_run", "card_memory"] and order.index("rrhf_step") < order.index("graph_decode")


def test_a_process_waits_for_its_turn(monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    monkeypatch.setattr(rrhf_step.SUITE.__class__, "main", lambda self, words: pytest.fail("it had no turn"))
    assert worker.main(["rrhf_step"]) == 0


def test_a_part_may_fork():
    """A child closes its standard input, which a thread of its parent reads: neither waits for the other."""
    program = """
        import multiprocessing, sys, threading
        from benchmarks.gpu_day import worker
        sys.stdin.readline()
        threading.Thread(target=worker._end_with_the_day, daemon=True).start()
        child = multiprocessing.get_context("fork").Process(target=print)
        child.start()
        child.join(30)
        print("ended with", child.exitcode, flush=True)
        child.kill()
        worker.os._exit(0)
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program)],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    process.stdin.write("turn\n")
    process.stdin.flush()
    assert "ended with 0" in process.stdout.read()


def test_a_first_run_says_what_fails(tmp_path, result_of):
    """A command that fails ends its case, with the end of its log; the next command does not run."""
    ending = ("-c", "import sys; print('what went wrong'); sys.exit(3)")
    listing = ("-c", "import os; print(sorted(os.listdir()))")
    broken = first_run.measure(first_run.Case("broken", (listing, ending, ("-c", "open('/never')"))))
    assert (
        broken["metrics"]["runs"] is False and "what went wrong" in broken["error"] and "status 3" in broken["error"]
    )
    result = {**result_of(first_run.SUITE, broken, seeds=[0]), "label": "a"}
    path = results.write_result("first_run", results.torch.device("cpu"), result, tmp_path)
    assert path.exists() and results.measured_names("first_run", "a", tmp_path) == set()  # it is run again
    works = first_run.measure(first_run.Case("works", (listing,), rows=2))
    assert works["metrics"]["runs"] is True and works["error"] == ""


def test_the_first_run_covers_the_gpu_tests_and_every_quickstart():
    names = [case.name for case in first_run.cases()]
    assert sorted(names[1:]) == [f"quickstart {m}" for m in ("proxy_rlhf", "psle", "rrhf", "vas")]
    assert names[0] == first_run.TESTS
    assert "ROOT/tests/logprobs/test_logprobs.py" in first_run.cases()[0].commands[0]


# ------------------------------------------------------------------------------------------------------------ the page


def test_the_page_has_goals_beside_figures_and_what_was_not_measured(tmp_path, result_of):
    case = next(case for case in rrhf_step.CASES if case.targets.get("rows") == 1.75)
    name = f"{TRL_ROWS} / {CASCADE}"
    measured = {"name": case.name, "settings": {}, "variants": {}}
    measured["ratios"] = {name: {"of_medians": 1.7, "min": 1.6, "max": 1.9}}
    anchor = {"name": "RRHF step, 1 prompt × 6", "seed": 0, "settings": {}, "cost": {}}
    anchor["metrics"] = {"reserved": 7 * card_memory.GIB}
    for suite, found, settings in ((rrhf_step, measured, {}), (card_memory, anchor, {"seeds": [0]})):
        text = json.dumps(result_of(suite.SUITE, found, gpu="a GPU", **settings))
        (tmp_path / f"{suite.SUITE.name}.json").write_text(text)
    lines = page.goals_table(tmp_path).splitlines()
    [slow] = [line for line in lines if "llama-1b, 8 × (prompt 128" in line]
    assert slow.endswith("| ≥ 1.75 | **1.70** (1.60 to 1.90) | no |")
    [small] = [line for line in lines if "GiB reserved" in line]
    assert small.endswith("| ≤ 7.5 | **7.00** | yes |")
    assert next(line for line in lines if "prompt 1024" in line).endswith("| ≥ 3.4 | not measured |  |")
    days = [
        result_of(
            page.SUITE,
            {"name": "first_run", "seed": 0, "settings": {}, "cost": {}, "metrics": metrics},
            gpu="a GPU",
            seeds=[0],
            kind={"suite": "speed", "rehearsal": rehearsal},
        )
        for rehearsal, metrics in (
            (False, {"state": INCOMPLETE, "reason": "out of | memory", "seconds": 51.0, "measured": []}),
            (True, {"state": DONE, "reason": "", "seconds": 2.0, "measured": []}),
        )
    ]
    text = page.SUITE.report(days, tmp_path)
    assert "| incomplete: out of / memory | 51 |" in text and "a GPU" in text
    assert "| `sampling` | Sampling against transformers' `generate` | not measured |  |" in text
    assert text.count("| not measured |  |") > len(SUITES["speed"])


def test_a_copy_of_the_repository_is_small_enough_to_send_to_a_gpu():
    """64 MiB, of which other files may take a part."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=REPOSITORY, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("this is no clone")
    files = [REPOSITORY / name for name in listed.stdout.split("\0") if name]
    assert 0 < sum(file.stat().st_size for file in files if file.is_file()) < 56 * 2**20
