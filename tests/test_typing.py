# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""The types of the public API: the stub lists every public name, and mypy finds the mistakes in a user's script."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import trl_ext
from trl_ext.method import discover
from trl_ext.plugins import OWN_PACKAGE


ROOT = Path(__file__).resolve().parent.parent

# A user's script. A line with a mistake ends in a comment with a part of mypy's message; mypy must accept the others.
SCRIPT = """
import trl_ext
from trl_ext import ExtConfig, GenerationSettings, Method, best_of_n, discover, evaluate_model, load_dataset
from trl_ext import PLEConfig, PLETrainer, ProxyConfig, ProxyModel, ProxyRLHFConfig, ProxyRLHFTrainer
from trl_ext import PSLEConfig, PSLETrainer, RankingLoss, RRHFConfig, RRHFTrainer
from trl_ext import EndpointGuide, ValueAugmentedLogitsProcessor, ValueConfig, ValueModel, VASConfig, VASTrainer

# a class
from trl_ext import RRHFTrayner  # error: has no attribute "RRHFTrayner"
trl_ext.RRHFConfigs  # error: has no attribute "RRHFConfigs"

# a setting of the method, of trl-ext, of transformers
args = RRHFConfig("out", length_penalty=0.5, num_generations=8, use_vllm=True, learning_rate=1e-5)
RRHFConfig("out", lenght_penalty=0.5)  # error: "lenght_penalty"
RRHFConfig("out", num_generation=8)  # error: "num_generation"
RRHFConfig("out", learning_rat=1e-5)  # error: "learning_rat"
RRHFConfig("out", length_penalty="0.5")  # error: incompatible type "str"; expected "float | None"
RRHFConfig("out", rank_weight="0.5")  # error: incompatible type "str"; expected "float"
RRHFConfig("out", num_generations=8.5)  # error: incompatible type "float"; expected "int"
RRHFConfig("out", learning_rate="fast")  # error: incompatible type "str"; expected "float"
ExtConfig("out", max_lenght=8)  # error: "max_lenght"
PSLEConfig("out", nonsense=1)  # error: "nonsense"
PLEConfig("out", nonsense=1)  # error: "nonsense"
VASConfig("out", nonsense=1)  # error: "nonsense"
ProxyRLHFConfig("out", nonsense=1)  # error: "nonsense"
GenerationSettings(temperature=0.7, max_new_tokens=8)  # error: "max_new_tokens"

# a trainer
rows = load_dataset("rows.jsonl", split="train")
trainer = RRHFTrainer(model="model", args=args, train_dataset=rows)
trainer.train()
trainer.save_model("out")
trainer.args.rank_weight + 1.0
trainer.args.lenght_penalty  # error: has no attribute "lenght_penalty"
trainer.trian()  # error: has no attribute "trian"
RRHFTrainer(model="model", args=args, train_dataset=rows, nonsense=1)  # error: "nonsense"
RRHFTrainer(model=3, args=args, train_dataset=rows)  # error: incompatible type "int"
RRHFTrainer(model="model", args=VASConfig("out"), train_dataset=rows)  # error: expected "RRHFConfig | None"
PSLETrainer(model="model", args=PSLEConfig("out"), train_dataset=rows, nonsense=1)  # error: "nonsense"
PLETrainer(model="model", args=PLEConfig("out"), train_dataset=rows, nonsense=1)  # error: "nonsense"
VASTrainer(model="model", args=VASConfig("out"), train_dataset=rows, nonsense=1)  # error: "nonsense"
ProxyRLHFTrainer(model="model", args=ProxyRLHFConfig("out"), train_dataset=rows, nonsense=1)  # error: "nonsense"

# the rest
discover().methods["rrhf"].method.summary.upper()
load_dataset("rows.jsonl", spilt="train")  # error: No overload variant of "load_dataset"
values: ValueModel = ProxyModel.from_pretrained("proxy")  # error: expression has type "ProxyModel"
proxy: ProxyModel = ValueModel.from_pretrained("values")  # error: expression has type "ValueModel"
"""


def test_stub_has_the_names_of_the_package():
    """Those of `_SHARED` and of the entry points of this package, each from the module that has it at run time."""
    stub = ast.parse((ROOT / "trl_ext" / "__init__.pyi").read_text(encoding="utf-8"))
    typed = {
        alias.asname: f"trl_ext.{node.module}:{alias.name}"
        for node in stub.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    public = {name: f"trl_ext.{module}:{name}" for name, module in trl_ext._SHARED.items()}
    for found in discover().methods.values():
        if found.package == OWN_PACKAGE:
            public |= found.method.class_names
    assert typed == public


@pytest.mark.slow
def test_mypy_finds_the_mistakes_in_a_script(tmp_path, pytestconfig):
    """
    With mypy's default settings. Its cache is kept between runs of pytest, if that keeps any: reading torch,
    transformers and TRL takes a minute.
    """
    (tmp_path / "script.py").write_text(SCRIPT)
    # `silent`, as mypy treats an installed package: it reads what a script imports and reports only on the script
    kept = getattr(pytestconfig, "cache", None)  # none with `-p no:cacheprovider`
    cache = tmp_path / "mypy" if kept is None else kept.mkdir("mypy")
    flags = ["--config-file=", "--follow-imports=silent", f"--cache-dir={cache}"]
    result = subprocess.run(
        [sys.executable, "-m", "mypy", *flags, "script.py"],
        cwd=tmp_path,
        env={**os.environ, "MYPYPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    errors = {int(line): message for line, message in re.findall(r"script\.py:(\d+): error: (.*)", result.stdout)}
    expected = {
        number: line.partition("# error: ")[2]
        for number, line in enumerate(SCRIPT.splitlines(), start=1)
        if "# error: " in line
    }
    assert expected
    assert errors.keys() == expected.keys(), result.stdout + result.stderr
    for number, part in expected.items():
        assert part in errors[number]
