# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""The completion scripts: in step with the parsers, and read by real shells."""

import dataclasses
import shutil
import subprocess

import pytest
import shtab

from trl_ext.cli import completion
from trl_ext.cli.main import main
from trl_ext.commands import COMMANDS
from trl_ext.method import discover


@pytest.fixture(scope="module")
def scripts(tmp_path_factory):
    """Files with the script of each shell. The parsers are made once."""
    folder = tmp_path_factory.mktemp("completion")
    line = completion.command_line()
    files = {}
    for shell in completion.SHELLS:
        files[shell] = folder / shell
        files[shell].write_text(shtab.complete(line, shell))
    return files


@pytest.mark.parametrize("shell", completion.SHELLS)
def test_has_every_method_command_and_flag(scripts, shell):
    text = scripts[shell].read_text()
    config = discover().methods["rrhf"].method.config_class()
    names = [*discover().methods, *COMMANDS, *(field.name for field in dataclasses.fields(config) if field.init)]
    assert [name for name in names if name not in text] == []


CASES = [
    (["rr"], ["rrhf"]),
    (["rrhf", "--learn"], ["--learning_rate"]),
    (["rrhf", "--nan_loss", ""], ["skip", "stop"]),
    (["rrhf", "--use_cpu", ""], ["false", "true"]),
    (["sample", "--model_name_or_path", "a", "--num_gen"], ["--num_generations"]),
    (["rrhf", "--config", "reci"], ["recipe.yaml"]),
    (["completion", ""], ["bash", "fish", "zsh"]),
    (["frontier", "reci"], ["recipe.yaml"]),
    (["judge", "reci"], ["recipe.yaml"]),
    (["judge", "a", "b", "--judge_f"], ["--judge_func"]),
    (["judge", "a", "b", "--rubric", "reci"], ["recipe.yaml"]),
    (["vas", "--num_processes", "2", "--mixed_p"], ["--mixed_precision"]),
]


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_bash(scripts, tmp_path):
    (tmp_path / "recipe.yaml").touch()
    lines = [f"source {scripts['bash']}"]
    for words, _ in CASES:
        quoted = " ".join(f"'{word}'" for word in ["trl-ext", *words])
        lines += [
            f"COMP_WORDS=({quoted}); COMP_CWORD={len(words)}; COMPREPLY=()",
            '_shtab_trl_ext trl-ext "${COMP_WORDS[-1]}" "${COMP_WORDS[-2]}"; echo "${COMPREPLY[*]}"',
        ]
    done = subprocess.run(["bash", "-c", "\n".join(lines)], capture_output=True, text=True, cwd=tmp_path)
    assert [sorted(line.split()) for line in done.stdout.splitlines()] == [found for _, found in CASES], done.stderr


@pytest.mark.skipif(shutil.which("fish") is None, reason="needs fish")
def test_fish(scripts, tmp_path):
    (tmp_path / "recipe.yaml").touch()
    lines = [f"source {scripts['fish']}"]
    lines += [f"echo (complete -C 'trl-ext {' '.join(words)}' | cut -f 1)" for words, _ in CASES]
    done = subprocess.run(["fish", "-c", "\n".join(lines)], capture_output=True, text=True, cwd=tmp_path)
    assert [sorted(line.split()) for line in done.stdout.splitlines()] == [found for _, found in CASES], done.stderr


@pytest.mark.skipif(shutil.which("zsh") is None, reason="needs zsh")
def test_zsh_reads_it(scripts):
    subprocess.run(["zsh", "-n", str(scripts["zsh"])], check=True)
    assert scripts["zsh"].read_text().startswith("#compdef trl-ext")


def test_another_shell_is_refused(capsys):
    assert main(["completion", "tcsh"]) == 2
    assert "there are scripts for bash, zsh, fish" in capsys.readouterr().err
    assert main(["completion"]) == 0
    assert capsys.readouterr().out.startswith("usage: trl-ext completion {bash,zsh,fish}")
