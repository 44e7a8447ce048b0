# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""`accelerate launch` behind the command: its flags, when it is needed, how it ends."""

import os
import subprocess
from pathlib import Path

import pytest
from conftest import REPOSITORY

from trl_ext.cli import launch as cli_launch
from trl_ext.cli import train as cli_train
from trl_ext.cli.launch import launch_arguments, needs_launcher, resolve_accelerate_config, with_resume_hint
from trl_ext.cli.parser import Extra
from trl_ext.method import discover


NAME = next(iter(discover().methods))


@pytest.fixture(scope="module")
def parser():
    """A method's parser, without a YAML file's defaults in it: not for tests that read one."""
    return cli_train.make_parser(discover().methods[NAME].method)


@pytest.fixture(autouse=True)
def one_process(monkeypatch):
    """No launcher around the tests, and no `accelerate config` of the person who runs them."""
    for name in ("LOCAL_RANK", "RANK", "WORLD_SIZE", "TRL_EXT_DEBUG"):
        monkeypatch.delenv(name, raising=False)
    from accelerate.commands.config import config_args

    monkeypatch.setattr(config_args, "default_config_file", "/nonexistent/default_config.yaml")


class TestLaunch:
    def arguments(self, parser, config=None, flags=()):
        return launch_arguments(Extra(config or {}, list(flags), "c.yaml"), parser)

    def test_nothing_left_over(self, parser):
        assert self.arguments(parser) == []

    def test_yaml_values_become_flags(self, parser):
        config = {
            "num_processes": 2,
            "multi_gpu": True,
            "use_fsdp": False,
            "mixed_precision": False,
            "main-process-port": 0,
        }
        assert self.arguments(parser, config) == [
            *("--num_processes", "2"),
            "--multi_gpu",
            *("--mixed_precision", "no"),
            *("--main_process_port", "0"),
        ]

    def test_flags_follow_and_keep_their_values(self, parser):
        flags = ["--num-processes", "2", "--multi_gpu", "--gpu_ids=0,1"]
        assert self.arguments(parser, {"num_processes": 4}, flags) == ["--num_processes", "4", *flags]

    @pytest.mark.parametrize("flags", [["--accelerate_config", "zero2"], ["--accelerate-config=zero2"]])
    def test_named_accelerate_config(self, parser, flags):
        flag, path = self.arguments(parser, flags=flags)
        assert flag == "--config_file"
        assert Path(path).name == "zero2.yaml"
        assert self.arguments(parser, {"accelerate_config": "zero2"}) == [flag, path]

    @pytest.mark.parametrize("name", ["single_gpu", "multi_gpu", "fsdp2", "zero2", "zero3"])
    def test_our_accelerate_configs(self, name):
        from accelerate.commands.config.config_args import load_config_from_file
        from accelerate.commands.launch import launch_command_parser

        path = resolve_accelerate_config(name)
        assert Path(path).parent == REPOSITORY / "recipes" / "accelerate"
        config = load_config_from_file(path)  # raises for a key that accelerate does not know
        kind = {"single_gpu": "NO", "multi_gpu": "MULTI_GPU", "fsdp2": "FSDP"}.get(name, "DEEPSPEED")
        assert config.distributed_type.value == kind
        assert (config.mixed_precision, config.num_processes) == ("bf16", 1 if name == "single_gpu" else 8)
        flags = {action.dest for action in launch_command_parser()._actions}
        assert not {*config.fsdp_config, *config.deepspeed_config} - flags
        assert config.fsdp_config.get("fsdp_version", 2) == 2
        assert config.deepspeed_config.get("zero_stage", 0) == {"zero2": 2, "zero3": 3}.get(name, 0)
        assert f"--accelerate_config {name}" in Path(path).read_text()

    def test_accelerate_config_of_ones_own(self, tmp_path):
        path = tmp_path / "mine.yaml"
        path.write_text("distributed_type: 'NO'")
        assert resolve_accelerate_config(str(path)) == str(path)

        path = tmp_path / "mine.json"
        path.write_text('{\n\t"distributed_type": "NO"\n}')  # tabs, which YAML has not
        assert resolve_accelerate_config(str(path)) == str(path)

    @pytest.mark.parametrize("text", ["learning_rate: 1e-4", "", "- a\n- b", "a: [1"])
    def test_file_that_is_no_accelerate_config(self, tmp_path, text):
        path = tmp_path / "mine.yaml"
        path.write_text(text)
        said = "while parsing" if text == "a: [1" else "it has no `distributed_type`"
        with pytest.raises(ValueError, match=rf"mine.yaml' is no accelerate config: {said}"):
            resolve_accelerate_config(str(path))

    def test_unknown_accelerate_config_lists_the_names(self):
        with pytest.raises(ValueError, match=r"'zeroo2' is no file and none of .*zero2.*did you mean zero2"):
            resolve_accelerate_config("zeroo2")

    def test_unknown_words_name_the_nearest_of_ours_and_accelerates(self, parser):
        with pytest.raises(ValueError, match="unknown flag '--num_proceses'; did you mean '--num_processes'"):
            self.arguments(parser, flags=["--num_proceses", "2"])
        with pytest.raises(ValueError, match="unknown flag '--learning_rat'; did you mean '--learning_rate'"):
            self.arguments(parser, flags=["--learning_rat", "2"])
        with pytest.raises(ValueError, match=r"c\.yaml: unknown key 'max_lenght'; did you mean 'max_length'"):
            self.arguments(parser, {"max_lenght": 2})
        with pytest.raises(ValueError, match="unexpected argument 'stray'"):
            self.arguments(parser, flags=["--multi_gpu", "stray"])

    def test_values_of_another_type_are_named_with_their_flag(self, parser):
        with pytest.raises(ValueError, match="--num_processes must be at least 1, got 0"):
            self.arguments(parser, {}, ["--num_processes", "0"])
        for flags in (["--num_processes", "two"], ["--num-processes=two"]):
            with pytest.raises(ValueError, match=rf"^{flags[0].partition('=')[0]} must be a whole number, got 'two'$"):
                self.arguments(parser, flags=flags)
        with pytest.raises(ValueError, match=r"^`num_processes` must be a whole number, got 'two'$"):
            self.arguments(parser, {"num_processes": "two"})
        with pytest.raises(ValueError, match=r"^--mixed_precision must be one of no, fp16, .*got 'half'"):
            self.arguments(parser, flags=["--mixed_precision", "half"])
        assert self.arguments(parser, {"num_processes": 2.0}) == ["--num_processes", "2"]

    @pytest.mark.parametrize("flags", [["--module"], ["--no_python"]])
    def test_what_runs_is_not_the_users_choice(self, parser, flags):
        with pytest.raises(ValueError, match="unknown flag"):
            self.arguments(parser, flags=flags)

    def test_flag_without_its_value(self, parser):
        with pytest.raises(ValueError, match="--num_processes needs a value"):
            self.arguments(parser, flags=["--num_processes"])

    def test_yaml_switch_that_is_no_boolean(self, parser):
        with pytest.raises(ValueError, match="`multi_gpu` is a flag of accelerate: true or false, got 2"):
            self.arguments(parser, {"multi_gpu": 2})

    def test_a_launcher_only_where_needed(self, monkeypatch, tmp_path):
        import torch
        from accelerate.commands.config import config_args

        monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
        monkeypatch.setattr(torch.accelerator, "device_count", lambda: 1)
        assert not needs_launcher([])
        assert needs_launcher(["--num_processes", "1"])
        monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
        assert needs_launcher([])
        monkeypatch.setattr(torch.accelerator, "device_count", lambda: 1)
        (tmp_path / "default_config.yaml").write_text("")
        monkeypatch.setattr(config_args, "default_config_file", str(tmp_path / "default_config.yaml"))
        assert needs_launcher([])

    def test_inside_a_launcher(self, monkeypatch):
        monkeypatch.setenv("LOCAL_RANK", "0")
        monkeypatch.setenv("WORLD_SIZE", "2")
        assert not needs_launcher([])
        with pytest.raises(ValueError, match="--num_processes 2: this process was started by a launcher already"):
            needs_launcher(["--num_processes", "2"])

    def launched(self, monkeypatch, arguments, accelerator=False):
        """The options that accelerate's launcher would get."""
        import accelerate.commands.launch
        import torch

        seen = []
        monkeypatch.setattr(torch.accelerator, "is_available", lambda: accelerator)
        monkeypatch.setattr(accelerate.commands.launch, "launch_command", seen.append)
        assert cli_launch.launch(arguments, "word", ["--seed", "3"]) == 0
        return seen[0]

    def test_runs_the_training_module_with_our_arguments(self, monkeypatch):
        options = self.launched(monkeypatch, ["--num_processes", "1"])
        assert options.module
        assert options.training_script == "trl_ext.cli.train"
        assert options.training_script_args == ["word", "--seed", "3"]

    def test_several_processes_without_accelerator_are_several(self, monkeypatch):
        assert self.launched(monkeypatch, ["--num_processes", "2"]).multi_gpu
        options = self.launched(monkeypatch, ["--num_processes", "2", "--cpu"])
        assert options.multi_gpu
        assert not options.cpu
        assert not self.launched(monkeypatch, ["--num_processes", "1"]).multi_gpu

    def test_cpu_processes_beside_an_accelerator_would_be_one(self, monkeypatch):
        with pytest.raises(ValueError, match="would run a single process"):
            self.launched(monkeypatch, ["--num_processes", "2", "--cpu"], accelerator=True)

    @pytest.mark.parametrize(("returncode", "status"), [(2, 2), (1, 1), (-9, 137)])
    def test_failure_of_the_script_is_a_status(self, returncode, status):
        def run():
            raise subprocess.CalledProcessError(returncode, "python")

        assert cli_launch._exit_status(run) == status

    @pytest.mark.parametrize("returncode", [130, -2])
    def test_interrupted_script(self, returncode):
        def run():
            raise subprocess.CalledProcessError(returncode, "python")

        with pytest.raises(KeyboardInterrupt):
            cli_launch._exit_status(run)


class TestResume:
    def checkpoint(self, folder, name, complete=True):
        (folder / name).mkdir()
        if complete:
            (folder / name / "trainer_state.json").write_text("{}")
            (folder / name / "optimizer.pt").touch()

    def interrupted(self):
        raise KeyboardInterrupt

    def test_interrupted_before_the_first_checkpoint(self, tmp_path, capsys):
        assert with_resume_hint(self.interrupted, "p", str(tmp_path)) == 130
        assert f"p: interrupted. No checkpoint in {tmp_path} yet" in capsys.readouterr().err

    def test_newest_complete_checkpoint_is_named(self, tmp_path, capsys):
        for name in ("checkpoint-9", "checkpoint-10", "checkpoint-best"):
            self.checkpoint(tmp_path, name)
        self.checkpoint(tmp_path, "checkpoint-11", complete=False)
        assert with_resume_hint(self.interrupted, "p", str(tmp_path)) == 130
        assert f"--resume_from_checkpoint {tmp_path / 'checkpoint-10'}\n" in capsys.readouterr().err

    def test_errors_pass_through_with_the_hint(self, tmp_path, capsys):
        self.checkpoint(tmp_path, "checkpoint-5")

        def disk_full():
            raise OSError(28, "No space left on device")

        with pytest.raises(OSError, match="No space left"):
            with_resume_hint(disk_full, "p", str(tmp_path))
        assert "checkpoint-5" in capsys.readouterr().err
        os.utime(tmp_path / "checkpoint-5", (0, 0))  # another run's: this one came to nothing
        with pytest.raises(OSError, match="No space left"):
            with_resume_hint(disk_full, "p", str(tmp_path))
        assert not capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--use_deepspeed"], ["--config_file", resolve_accelerate_config("zero2")]])
def test_deepspeed_that_is_not_installed_names_the_extra(arguments, monkeypatch):
    real = cli_launch.importlib.util.find_spec
    monkeypatch.setattr(
        cli_launch.importlib.util, "find_spec", lambda name: None if name == "deepspeed" else real(name)
    )
    with pytest.raises(ImportError, match=r"pip install 'trl-ext\[deepspeed\]'"):
        cli_launch.launch([*arguments, "--num_processes", "2"], NAME, [])
