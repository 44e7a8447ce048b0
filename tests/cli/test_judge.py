# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""`trl-ext judge`: each judge, its files, a run that is killed or interrupted, and bad input."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from conftest import HANGS
from evaluation_files import write_evaluation
from scripted_server import ScriptedServer

from trl_ext.cli.judge import JudgeArguments, main
from trl_ext.cli.main import main as trl_ext_main


REPOSITORY = Path(__file__).resolve().parent.parent.parent
JUDGES = """\
def length(completions, **columns):
    return [float(len(text)) for text in completions]


def longer(prompts, completions_a, completions_b):
    return ["A" if len(a) > len(b) else "B" for a, b in zip(completions_a, completions_b)]
"""


@pytest.fixture(autouse=True)
def files(tmp_path, monkeypatch):
    """a.parquet, b.parquet (twelve prompts; A is longer on nine) and judges_of_test.py in the working directory."""
    monkeypatch.chdir(tmp_path)
    write_evaluation(tmp_path, "a", {"run/x": [["longer"]] * 9 + [["no"]] * 3, "base": [["?"]] * 12})
    write_evaluation(tmp_path, "b", {"base": [["short"]] * 12})
    (tmp_path / "judges_of_test.py").write_text(JUDGES)
    yield
    sys.modules.pop("judges_of_test", None)


AB = ["a.parquet", "b.parquet", "--policy_a", "x"]


@pytest.fixture
def server():
    """A server whose judge prefers the longer answer."""

    def answer(path, body):
        first, second = re.findall(r"<answer_.>\n(.*?)\n</answer", body["messages"][0]["content"])
        text = json.dumps({"verdict": "A" if len(first) > len(second) else "B"})
        choice = {"message": {"content": text}, "finish_reason": "stop"}
        return {"choices": [choice], "usage": {"prompt_tokens": 50, "completion_tokens": 5}}

    found = ScriptedServer(answer)
    yield found
    found.close()


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (["--by", "r"], "column reward/r"),
        (["--reward_funcs", "judges_of_test.py:length"], "reward length"),
        (["--judge_func", "judges_of_test.longer"], "function longer"),
    ],
    ids=["column", "reward", "function"],
)
def test_prints_and_writes_the_result(words, name, capsys):
    assert main([*AB, *words, "--output_file", "out.json"]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"win rate of A +75\.0%   95 % interval 50\.0% to 100\.0%\n", printed)
    assert max(map(len, printed.splitlines())) <= 80
    found = json.loads(Path("out.json").read_text())
    assert (found["judge"], found["wins"], found["losses"], found["num_pairs"]) == (name, 9, 3, 12)
    assert found["win_rate"]["value"] == 0.75 and found["policies"]["A"]["policy"] == "run/x"
    rows = [json.loads(line) for line in Path("out.jsonl").read_text().splitlines()]
    assert len(rows) == (24 if name.startswith("function") else 12)
    assert {row["verdict"] for row in rows} == {"A", "B"}


def test_a_server_judges_and_is_not_asked_again(server, capsys):
    words = [*AB, "--endpoint", server.url, "--endpoint_model", "m", "--output_file", "out.json"]
    Path("rubric.txt").write_text("The longer one is better.")
    assert main([*words, "--rubric", "rubric.txt"]) == 0
    printed = capsys.readouterr().out
    assert "24 requests in this run (0 retries); all kept verdicts: 1,200" in printed
    assert server.requests[0][1]["messages"][0]["content"].startswith("The longer one is better.")
    assert main([*words, "--rubric", "rubric.txt"]) == 0
    assert "0 requests in this run" in capsys.readouterr().out
    assert len(server.requests) == 24


def test_the_server_fails(server, capsys):
    server.answer = lambda path, body: (401, {}, {"error": {"message": "who are you?"}})
    assert main([*AB, "--endpoint", server.url, "--endpoint_model", "m", "--verdicts_file", "v.jsonl"]) == 1
    error = capsys.readouterr().err
    assert "who are you?" in error and "'v.jsonl'; the same command resumes there" in error


def test_only_faults(server, capsys):
    server.answer = lambda path, body: {"choices": [{"message": {"content": "I like both."}, "finish_reason": "stop"}]}
    assert main([*AB, "--endpoint", server.url, "--endpoint_model", "m", "--output_file", "out.json"]) == 1
    printed = capsys.readouterr().out
    assert "24 verdicts: 12 of 12 pairs are left out" in printed and "'I like both.'" in printed
    assert "24 answers without a count" in printed
    assert json.loads(Path("out.json").read_text())["win_rate"] is None


def start(server):
    words = [*AB, "--endpoint", server.url, "--endpoint_model", "m", "--output_file", "out.json"]
    command = [sys.executable, "-m", "trl_ext", "judge", *words, "--endpoint_concurrency", "2"]
    # A shell that runs the tests in the background has them ignore Ctrl-C, which is inherited.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return subprocess.Popen(
            command, env={**os.environ, "PYTHONPATH": str(REPOSITORY)}, stderr=subprocess.PIPE, text=True
        )
    finally:
        signal.signal(signal.SIGINT, before)


def slow(server, answers):
    """The server answers so many requests at once, and the others after the returned event is set."""
    goes_on, inner, lock, left = threading.Event(), server.answer, threading.Lock(), [answers]

    def answer(path, body):
        with lock:
            left[0] -= 1
        if left[0] < 0:
            goes_on.wait(20)
        return inner(path, body)

    server.answer = answer
    return goes_on


def wait_until(condition):
    deadline = time.monotonic() + HANGS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT], ids=["killed", "Ctrl-C"])
def test_an_interrupted_run_loses_no_verdict(server, how, capsys):
    """10 answers come, two requests are open. They are kept after Ctrl-C, and lost with a killed process."""
    goes_on = slow(server, 10)
    process = start(server)
    state = Path("out.jsonl.state.json")  # written after each row
    wait_until(lambda: state.exists() and json.loads(state.read_text())["rows"] == 10 and len(server.requests) == 12)
    process.send_signal(how)
    goes_on.set()
    error = process.communicate(timeout=HANGS)[1]
    # A busy process may ask for more before it sees the signal: whatever it has asked for, it keeps.
    kept = 10 if how == signal.SIGKILL else len(server.requests)
    assert 12 <= len(server.requests) < 24
    assert len(Path("out.jsonl").read_text().splitlines()) == kept
    assert process.returncode == (-signal.SIGKILL if how == signal.SIGKILL else 130)
    if how == signal.SIGINT:
        assert f"judge: interrupted; {kept} of 24 rows are in 'out.jsonl'; the same command resumes there" in error
    with Path("out.jsonl").open("a") as file:
        file.write('{"prompt_index": 3, "comp')  # what a kill in the middle of a line leaves
    server.requests.clear()
    assert start(server).wait(60) == 0
    assert len(server.requests) == 24 - kept
    assert json.loads(Path("out.json").read_text())["wins"] == 9
    assert len(Path("out.jsonl").read_text().splitlines()) == 24


def test_needs_no_torch(server):
    """Functions, columns and servers; each in a new process, in which `main` runs as it does for a user."""
    judges = [
        ["--by", "reward/r"],
        ["--reward_funcs", "judges_of_test.py:length"],
        ["--judge_func", "judges_of_test.py:longer"],
        ["--endpoint", server.url, "--endpoint_model", "m", "--output_file", "out.json"],
        ["--help"],
    ]
    script = f"""
import sys
from trl_ext.cli.main import main
for words in {judges!r}:
    assert main(["judge", *{AB!r}, *words]) == 0
    assert "torch" not in sys.modules, words
"""
    env = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    found = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, timeout=HANGS)
    assert found.returncode == 0, found.stderr


def test_help(capsys):
    assert main(["--help"]) == 0
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= 80
    assert [name for name in JudgeArguments.__dataclass_fields__ if f"  --{name}" not in printed] == []


SERVED = ["--endpoint", "http://127.0.0.1:1/v1", "--endpoint_model", "m", "--output_file", "out.json"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["a.parquet"], "FILE"),
        (AB, "one judge is needed: pass --by, --reward_funcs"),
        ([*AB, "--by", "r", "--judge_func", "f.g"], "not --by and --judge_func"),
        ([*AB[:2], "--by", "r"], "has the policies 'run/x', 'base': choose one with policy_a"),
        ([*AB, "--by", "r", "--rubric", "x"], "`rubric` has no effect with --by"),
        ([*AB, "--by", "r", "--reward_batch_size", "2"], "`reward_batch_size` has no effect with --by"),
        ([*AB, "--judge_func", "judges_of_test:longer", "--retry_faults"], "`retry_faults` has no effect without"),
        ([*AB, "--judge_func", "judges_of_test:longer", "--overwrite_output"], "`overwrite_output` has no effect"),
        ([*AB, *SERVED[:2]], "`endpoint` needs the name of the server's model"),
        ([*AB, *SERVED[:4]], "name a file that keeps them"),
        ([*AB, *SERVED, "--rubric", "none.txt"], "there is no rubric file 'none.txt'"),
        ([*AB, *SERVED, "--endpoint_body", "x"], "endpoint_body"),
        ([*AB, *SERVED, "--endpoint_concurrency", "0"], "endpoint_concurrency"),
        ([*AB, *SERVED, "--endpoint_key_variable", "NO_SUCH_KEY"], "NO_SUCH_KEY"),
        ([*AB, "--by", "r", "--bootstrap_samples", "-1"], "bootstrap_samples"),
        ([*AB, "--by", "r", "--seed", "x"], "seed"),
        ([*AB, "--by", "r", "--colour", "x"], "--colour"),
        ([*AB, "--by", "r", "--output_file", "out.jsonl"], "is a JSON file, with a .jsonl file beside it"),
        ([*AB, "--by", "r", "--output_file", "judged_0.5"], "its name must end in .json"),
        ([*AB, "--by", "r", "--output_file", "./b.json"], "would replace ./b.json, which belongs to b.parquet"),
        ([*AB, "--by", "r", "--output_file", "no/out.json"], "the folder of --output_file does not exist"),
        ([*AB, "--by", "r", "--verdicts_file", "v.json"], "must end in .jsonl"),
        ([*AB, "--judge_func", "none.py:f"], "Cannot load the judge 'none.py:f': there is no file"),
        ([*AB, "--judge_func", "judges_of_test.py:f"], "module 'judges_of_test.py' has no function 'f'"),
        ([*AB, "--reward_funcs", "judges_of_test.length", "--reward_weights", "1", "2"], "`reward_weights` has 2"),
    ],
)
def test_bad_input_is_one_line(words, message, capsys):
    assert trl_ext_main(["judge", *words]) == 2
    error = capsys.readouterr().err
    assert message in error and error.startswith("trl-ext judge: error: ") and error.count("\n") == 1
