# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""The command: dispatch, help, errors, and what a bug report needs."""

import dataclasses
import importlib
import importlib.metadata
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from conftest import REPOSITORY

from trl_ext import packages
from trl_ext.cli import env as cli_env
from trl_ext.cli import train as cli_train
from trl_ext.cli.config_file import read_config
from trl_ext.cli.errors import guarded
from trl_ext.cli.help import help_text
from trl_ext.cli.main import main
from trl_ext.commands import COMMANDS, TRL_COMMANDS
from trl_ext.method import discover


NAME = next(iter(discover().methods))


@pytest.fixture(scope="module")
def parser():
    """A method's parser, without a YAML file's defaults in it: not for tests that read one."""
    return cli_train.make_parser(discover().methods[NAME].method)


class TestDispatch:
    @pytest.mark.parametrize("words", [[], ["--help"], ["-h"], ["help"]])
    def test_help_lists_methods_and_commands(self, words, capsys, monkeypatch):
        monkeypatch.setenv("COLUMNS", "80")
        assert main(words) == 0
        lines = capsys.readouterr().out.splitlines()
        assert max(map(len, lines)) <= 80
        lines = [line.split() for line in lines]
        first_words = {line[0] for line in lines if line}
        assert {NAME, "sample", "best_of_n", "evaluate", "generate", "chat", "methods", "env"} <= first_words

    @pytest.mark.parametrize("name", ["completion", "quickstart", "recipes"])
    def test_help_that_is_written_by_hand_fits_80_columns(self, name, capsys):
        assert main([name, "--help"]) == 0
        assert [line for line in capsys.readouterr().out.splitlines() if len(line) > 80] == []

    @pytest.mark.parametrize("word", ["dpo", "vllm-serve", "vllm_serve"])
    def test_a_command_of_trl_is_named(self, word, capsys):
        assert main([word, "--config", "x.yaml"]) == 2
        assert capsys.readouterr().err.endswith(f"is a command of TRL: trl {word.replace('_', '-')}\n")

    def test_commands_of_trl_are_those_that_it_has(self):
        found = {command.name for command in importlib.import_module("trl.cli.commands").get_commands()}
        assert found - {"env"} == set(TRL_COMMANDS)

    @pytest.mark.parametrize("word", ["best_of_n", "best-of-n"])
    def test_hyphen_is_as_good_as_underscore(self, word, capsys):
        assert main([word]) == 2
        assert f"trl-ext {word}: error: 4 required settings are missing" in capsys.readouterr().err

    def test_environment_of_the_yaml_file_is_set_first(self, yaml_file, monkeypatch):
        """Also of a command that then fails: its module and what that imports may read the variables."""
        monkeypatch.setenv("TRL_EXT_TEST_VARIABLE", "before")
        assert main(["sample", "--config", yaml_file("env: {TRL_EXT_TEST_VARIABLE: 7}")]) == 2
        assert os.environ["TRL_EXT_TEST_VARIABLE"] == "7"

    def test_version(self, capsys):
        assert main(["--version"]) == 0
        assert capsys.readouterr().out == f"trl-ext {cli_env._version('trl-ext')}\n"

    @pytest.mark.parametrize(
        ("word", "near"),
        [("evalute", "evaluate"), ("sampel", "sample"), (NAME[:-1], NAME), ("method", "methods")],
    )
    def test_unknown_command_names_the_nearest(self, word, near, capsys):
        assert main([word]) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"trl-ext {word}: error: there is no method or command '{word}'; did you mean ")
        assert near in error

    def test_unknown_command_far_from_everything_lists_all(self, capsys):
        assert main(["zzzzzz"]) == 2
        words = sorted([*discover().methods, *COMMANDS])
        assert f"there are {', '.join(words)}" in capsys.readouterr().err

    def test_methods_takes_no_arguments(self, capsys):
        assert main(["methods", "--all"]) == 2
        assert "takes no arguments" in capsys.readouterr().err

    def test_module_and_console_script_are_the_same_command(self):
        script = Path(sys.executable).with_name("trl-ext")
        if not script.exists():
            pytest.skip("trl-ext is on the path but not installed")
        module = subprocess.run([sys.executable, "-m", "trl_ext", "methods"], capture_output=True, text=True)
        command = subprocess.run([str(script), "methods"], capture_output=True, text=True)
        assert module.returncode == command.returncode == 0
        assert module.stdout == command.stdout

    def test_the_file_of_the_command_is_the_command_too(self):
        result = subprocess.run([sys.executable, "-m", "trl_ext.cli", "methods"], capture_output=True, text=True)
        assert result.returncode == 0 and "rrhf" in result.stdout, result.stderr
        result = subprocess.run([sys.executable, "-m", "trl_ext.cli", "no_such"], capture_output=True, text=True)
        assert result.returncode == 2 and "there is no method or command 'no_such'" in result.stderr

    def test_a_reader_that_leaves_early_is_no_error(self):
        process = subprocess.Popen(
            [sys.executable, "-m", "trl_ext", "methods"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait() == 0


class TestEnv:
    def test_has_what_a_bug_report_needs(self, capsys):
        import torch
        import trl

        assert main(["env"]) == 0
        facts = dict(re.split(r" {2,}", line, maxsplit=1) for line in capsys.readouterr().out.splitlines() if line)
        assert facts["torch"] == torch.__version__
        assert facts["trl"] == trl.__version__
        assert facts["python"].startswith(".".join(map(str, sys.version_info[:3])))
        assert facts["cores"] == str(os.cpu_count())
        assert re.fullmatch(r"[\d.]+ of [\d.]+ GiB free", facts["memory"])
        assert {"accelerator", "accelerator memory", "also", "accelerate config", "platform", "git commit"} <= set(
            facts
        )
        assert {"transformers", "peft", "accelerate", "datasets", "bitsandbytes", "vllm", "deepspeed"} <= set(facts)

    def test_says_what_is_not_installed(self):
        assert cli_env._version("no-such-package-at-all") == "not installed"
        found = cli_env._version("no-such-package-at-all", "vllm")
        assert found == "not installed: pip install 'trl-ext[vllm]'"

    def test_finds_a_build_of_another_name(self, monkeypatch):
        monkeypatch.setattr("importlib.metadata.packages_distributions", lambda: {"a_module": ["torch"]})
        assert cli_env._version("a_module", "vllm") == f"{importlib.metadata.version('torch')} (torch)"

    def test_names_extras_that_there_are(self):
        extras = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        for package, extra in cli_env._OPTIONAL.items():
            assert any(line.startswith((package, f"trl[{package}]")) for line in extras[extra]), package

    def test_errors_about_missing_packages_name_what_to_install(self):
        """Not so errors about a class that a plug-in lacks, and about a package that is there but does not import."""
        extras = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        found = set()
        for path in sorted((REPOSITORY / "trl_ext").rglob("*.py")):
            text = path.read_text()
            for call in re.findall(r"raise ImportError\((.*?)\)(?: from [^\n]*)?\n", text, flags=re.DOTALL):
                # The last one is of code that is stored with a value model, for people without this package.
                others = ("has no class", "is installed, but", "_advice(", "needs trl-ext: pip install trl-ext")
                if not any(part in call for part in others):
                    found |= {*re.findall(r"pip install '?([\w-]+\[\w+\]|{\w+})", call)} or {f"{path.name}: {call}"}
        assert found == {
            "trl-ext[vllm]",
            "trl-ext[serve]",
            "trl-ext[playground]",
            "httpx2[socks]",
            "{package}",  # that a reward function of TRL needs
        }
        for package in (packages.VLLM, packages.DEEPSPEED, packages.UVICORN, packages.GRADIO):
            assert re.fullmatch(r"'trl-ext\[(\w+)\]'", package.pip)[1] in extras

    def test_trackers_are_those_of_transformers(self):
        integrations = importlib.import_module("transformers.integrations.integration_utils")
        assert set(packages.TRACKERS) == set(integrations.INTEGRATION_TO_CALLBACK)


class TestGuarded:
    def fail(self, error):
        def run():
            raise error

        return run

    def test_user_errors_are_one_line_and_status_2(self, capsys):
        assert guarded("trl-ext x", self.fail(ValueError("two\n  lines"))) == 2
        [line] = capsys.readouterr().err.splitlines()
        assert line.startswith("trl-ext x: error: two lines")

    def test_only_errors_from_elsewhere_point_at_the_traceback(self, capsys):
        guarded("trl-ext x", self.fail(ValueError("theirs")))
        assert "TRL_EXT_DEBUG=1" in capsys.readouterr().err
        guarded("trl-ext x", lambda: read_config("/no/such/file.yaml"))
        assert "TRL_EXT_DEBUG=1" not in capsys.readouterr().err

    def test_notes_of_an_error_follow_it(self, capsys):
        """What was kept of the work, and how to go on."""
        error = OSError("no space")
        error.add_note("The run can be resumed from checkpoint-2.")
        assert guarded("trl-ext x", self.fail(error)) == 2
        lines = capsys.readouterr().err.splitlines()
        assert lines[0].startswith("trl-ext x: error: no space")
        assert lines[1:] == ["The run can be resumed from checkpoint-2."]

    def test_debug_shows_the_traceback(self, monkeypatch):
        monkeypatch.setenv("TRL_EXT_DEBUG", "1")
        with pytest.raises(ValueError, match="broken"):
            guarded("trl-ext x", self.fail(ValueError("broken")))

    def test_bugs_keep_theirs(self):
        with pytest.raises(ZeroDivisionError):
            guarded("trl-ext x", self.fail(ZeroDivisionError()))

    def test_ctrl_c(self, capsys):
        assert guarded("trl-ext x", self.fail(KeyboardInterrupt())) == 130
        assert "interrupted" in capsys.readouterr().err


class TestHelp:
    def test_method_help_has_every_field_with_default_and_meaning(self, capsys):
        with pytest.raises(SystemExit) as left:
            main([NAME, "--help_all"])
        assert left.value.code == 0
        text = capsys.readouterr().out
        config = discover().methods[NAME].method.config_class()
        fields = {field.name: field for field in dataclasses.fields(config) if field.init}
        for name in [*fields, "model_name_or_path", "lora_r", "load_in_4bit", "dataset_name", "reward_funcs"]:
            assert f"  --{name}" in text, name
        entries = text.split("\n  --")[1:]
        assert len(entries) > 150
        for entry in entries:
            assert re.search(r"\((default: |required)", " ".join(entry.split())), entry
            assert len(re.split(r"\(default:|\(required", entry)[0].split()) > 3, f"no meaning: {entry}"

    def test_the_method_comes_first_then_what_is_common_then_the_rest(self, parser):
        short, full = help_text(parser, everything=False), help_text(parser, everything=True)
        config = f"{discover().methods[NAME].method.config.rpartition(':')[2]}, the settings of {NAME}:"
        for text in (short, full):
            places = [text.index(f"\n{title}") for title in ("example:", "required:", config)]
            places += [text.index("\nTrainArguments:"), text.index("\nsettings that methods share:")]
            assert places == sorted(places)
        assert full.index("\n  --max_length") < full.index("\nTrainingArguments of transformers:")
        assert "--output_dir" in short and "--adam_beta1" not in short and "--adam_beta1" in full
        assert len(short.splitlines()) < 0.6 * len(full.splitlines())
        assert max(map(len, short.splitlines())) <= 119

    def test_help_of_a_command_by_words(self, capsys):
        assert main(["help", "completion"]) == 0
        assert capsys.readouterr().out.startswith("usage: trl-ext completion")
        assert main(["rrhf", "help"]) == 2
        assert "(write --help)" in capsys.readouterr().err
        assert main(["--config", "x.yaml"]) == 2
        assert "'--config' comes after a method or a command" in capsys.readouterr().err

    def test_commands_have_help_too(self, capsys):
        for command in ("sample", "evaluate", "methods", "env"):
            try:
                status = main([command, "--help"])
            except SystemExit as left:
                status = left.code
            assert status == 0
            assert f"usage: trl-ext {command}" in capsys.readouterr().out


def test_a_full_memory_says_what_takes_less(capsys):
    import torch

    def run():
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 2 GiB.")

    assert guarded("p", run) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert first == "p: error: CUDA out of memory. Tried to allocate 2 GiB."
    assert "per_device_train_batch_size" in second

    def bug():
        raise RuntimeError("shapes")

    with pytest.raises(RuntimeError, match="shapes"):
        guarded("p", bug)
