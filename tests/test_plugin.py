# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""A stranger's package adds a method: it is used from Python and from the shell, beside one that is broken."""

import json
import os
import subprocess
import sys

import pytest
from conftest import HANGS
from stranger import write_package


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """An environment path with a working plug-in and a broken one."""
    folder = tmp_path_factory.mktemp("site")
    write_package(folder)
    write_package(folder, "broken-pkg", {"__init__.py": "import no_such_module"}, {"broken": "broken_pkg:METHOD"})
    return folder


@pytest.fixture
def recipe(tmp_path, tiny_model_dir):
    """A YAML file that trains the stranger's method for two steps."""
    rows = [{"text": f"the film number {i} was good"} for i in range(8)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "recipe.yaml").write_text(f"""
model_name_or_path: {tiny_model_dir}
dataset_name: {tmp_path / "rows.jsonl"}
output_dir: {tmp_path / "out"}
max_steps: 2
per_device_train_batch_size: 2
learning_rate: 1e-3
report_to: none
use_cpu: true
bf16: false
gradient_checkpointing: false
eval_strategy: no
save_strategy: no
""")
    return tmp_path / "recipe.yaml"


def run(site, *words, **env):
    """Run Python with the plug-ins on the path; a run that hangs takes its workers along."""
    path = os.pathsep.join([str(site), *filter(None, [os.environ.get("PYTHONPATH")])])
    process = subprocess.Popen(
        [sys.executable, *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": path, **env},
        cwd=site,
        start_new_session=True,
    )
    try:
        stdout, stderr = process.communicate(timeout=600)
    except subprocess.TimeoutExpired:
        process.terminate()  # accelerate's launcher ends its workers, which are sessions of their own
        stdout, stderr = process.communicate(timeout=HANGS)
        pytest.fail(f"hangs\n{stdout}\n{stderr}")
    return subprocess.CompletedProcess(words, process.returncode, stdout, stderr)


def trl_ext(site, *words, **env):
    """Run the command."""
    return run(site, "-m", "trl_ext", *words, **env)


def test_from_python(site, recipe):
    script = f"""
from datasets import Dataset
from trl_ext import StrangerConfig, StrangerTrainer
from trl_ext.method import discover

found = discover().find("stranger")
assert found.method.trainer_class() is StrangerTrainer
assert [entry.source for entry in discover().broken] == ["broken-pkg 0.3"]
args = StrangerConfig({str(recipe.parent / "py")!r}, max_steps=1, report_to="none", use_cpu=True, bf16=False, pull=0.5,
                      save_strategy="no", per_device_train_batch_size=2, gradient_checkpointing=False)
rows = Dataset.from_dict({{"text": ["one film", "two films"]}})
model = [line.split(": ")[1] for line in open({str(recipe)!r}) if line.startswith("model_name_or_path")][0].strip()
StrangerTrainer(model, args, train_dataset=rows).train()
"""
    result = run(site, "-c", script)
    assert result.returncode == 0, result.stderr
    assert json.loads((recipe.parent / "py" / "stranger.json").read_text())["pull"] == 0.5


def test_from_the_shell(site, recipe):
    result = trl_ext(site, "stranger", "--config", recipe, "--pull", "2.0")
    assert result.returncode == 0, result.stderr
    assert f"Saved to {recipe.parent / 'out'}" in result.stdout
    facts = json.loads((recipe.parent / "out" / "stranger.json").read_text())
    assert facts == {"pull": 2.0, "processes": 1, "rows": 8, "distributed_type": "NO"}
    assert (recipe.parent / "out" / "model.safetensors").is_file()


@pytest.mark.slow
def test_two_processes_without_an_accelerator(site, recipe):
    # accelerate alone would start one process here and say nothing
    result = trl_ext(site, "stranger", "--config", recipe, "--num_processes", "2", CUDA_VISIBLE_DEVICES="")
    assert result.returncode == 0, result.stderr
    facts = json.loads((recipe.parent / "out" / "stranger.json").read_text())
    assert facts == {"pull": 1.0, "processes": 2, "rows": 8, "distributed_type": "MULTI_CPU"}


def test_listed_with_package_and_version(site):
    result = trl_ext(site, "methods")
    assert result.returncode == 0
    working, broken = result.stdout.split("not usable:")
    assert any(line.split()[:4] == ["stranger", "2401.00001", "stranger-pkg", "0.3"] for line in working.splitlines())
    assert broken.strip() == "broken of broken-pkg 0.3: ModuleNotFoundError: No module named 'no_such_module'"


def test_broken_one_says_why(site):
    result = trl_ext(site, "broken", "--config", "x.yaml")
    assert result.returncode == 2
    assert result.stderr.strip() == (
        "trl-ext broken: error: the plug-in is not usable: broken of broken-pkg 0.3: ModuleNotFoundError: "
        "No module named 'no_such_module'"
    )


def test_user_error_is_one_line_in_one_process(site, recipe):
    result = trl_ext(site, "stranger", "--config", recipe, "--knotz", "3", "--num_processes", "2")
    assert result.returncode == 2
    [line] = [line for line in result.stderr.splitlines() if line.startswith("trl-ext")]
    assert line == "trl-ext stranger: error: unknown flag '--knotz'; did you mean '--knots'?"
