# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""`accelerate launch` for training: its flags and configs, when it is needed, how it runs and ends."""

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPOSITORY

from trl_ext.cli import launch as cli_launch
from trl_ext.cli import train as cli_train
from trl_ext.cli.launch import launcher_options, needs_launcher, resolve_accelerate_config, with_resume_hint
from trl_ext.cli.main import main
from trl_ext.method import discover


NAME = next(iter(discover().methods))


@pytest.fixture
def options(yaml_file):
    """The launcher's options of a method's YAML file and flags."""

    def parse(flags=(), yaml=None):
        parser = cli_train.make_parser(discover().methods[NAME].method)
        words = [*flags, *(["--config", yaml_file(yaml)] if yaml is not None else [])]
        return launcher_options(parser.other_flags(parser.parse_flags(words)))

    return parse


@pytest.mark.parametrize("entry", [main, cli_train._launched_main])
def test_a_launched_process_hides_the_warning_that_the_command_hides(entry, monkeypatch, capsys):
    ours = logging.getLogger("bitsandbytes.backends.cpu.ops")
    monkeypatch.setattr(sys, "argv", ["trl-ext", NAME, "--no_such_flag"])
    ours.setLevel(logging.NOTSET)
    assert entry() == 2 and "error: " in capsys.readouterr().err
    assert not ours.isEnabledFor(logging.WARNING)


class TestLaunch:
    def test_nothing_for_the_launcher(self, options):
        assert options() == {}

    def test_yaml_values(self, options):
        """YAML 1.1 reads a bare `no` as false, and a switch that is off asks for nothing."""
        yaml = "num_processes: 2.0\nmulti_gpu: true\nuse_fsdp: false\nmixed_precision: no\nmain-process-port: 0"
        expected = {"num_processes": 2, "multi_gpu": True, "mixed_precision": "no", "main_process_port": 0}
        assert options(yaml=yaml) == expected

    def test_flags_win(self, options):
        flags = ["--num-processes", "2", "--multi_gpu", "--gpu_ids=0,1"]
        expected = {"num_processes": 2, "multi_gpu": True, "gpu_ids": "0,1", "num_machines": 1}
        assert options(flags, "num_processes: 4\nnum_machines: 1") == expected

    def test_what_trainer_and_launcher_both_have_is_the_trainers(self, options):
        assert options(["--gradient_accumulation_steps", "2", "--debug", "underflow_overflow"]) == {}

    @pytest.mark.parametrize("flags", [["--accelerate_config", "zero2"], ["--accelerate-config=zero2"]])
    def test_named_accelerate_config(self, options, flags):
        found = options(flags)
        assert [*found] == ["config_file"]
        assert Path(found["config_file"]).name == "zero2.yaml"
        assert options(yaml="accelerate_config: zero2") == found

    def test_two_names_of_one_config(self, options, tmp_path):
        """Neither is ignored: the flag of accelerate's name, and the key of ours."""
        with pytest.raises(ValueError, match="two names of one setting"):
            options(["--config_file", str(tmp_path / "mine.yaml")], "accelerate_config: zero2")

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
    def test_file_that_is_not_an_accelerate_config(self, tmp_path, text):
        path = tmp_path / "mine.yaml"
        path.write_text(text)
        reason = "while parsing" if text == "a: [1" else "it has no `distributed_type`"
        with pytest.raises(ValueError, match=rf"mine.yaml' is not an accelerate config: {reason}"):
            resolve_accelerate_config(str(path))

    def test_unknown_accelerate_config_lists_the_names(self):
        with pytest.raises(ValueError, match=r"'zeroo2' is neither a file nor one of .*zero2.*did you mean zero2"):
            resolve_accelerate_config("zeroo2")

    def test_unknown_words_name_the_nearest_of_ours_and_accelerates(self, options):
        for flags, message in (
            (["--num_proceses", "2"], "unknown flag '--num_proceses'; did you mean '--num_processes'"),
            (["--learning_rat", "2"], "unknown flag '--learning_rat'; did you mean '--learning_rate'"),
            (["--multi_gpu", "stray"], "unexpected argument 'stray'"),
        ):
            with pytest.raises(ValueError, match=message):
                options(flags)
        with pytest.raises(ValueError, match=r"config\.yaml: unknown key 'max_lenght'; did you mean 'max_length'"):
            options(yaml="max_lenght: 2")

    @pytest.mark.parametrize(
        ("flags", "yaml", "message"),
        [
            (["--num_processes", "0"], None, "`num_processes` must be at least 1, got 0"),
            (["--num_processes", "two"], None, "--num_processes must be a whole number, got 'two'"),
            (["--num-processes=two"], None, "--num-processes must be a whole number, got 'two'"),
            (["--num_processes"], None, "--num_processes needs a value"),
            (["--mixed_precision", "half"], None, "--mixed_precision must be one of no, fp16, .*got 'half'"),
            ([], "num_processes: two", r"config\.yaml: `num_processes` must be a whole number, got 'two'"),
            ([], "mixed_precision: half", "`mixed_precision` must be one of no, fp16, .*got 'half'"),
            ([], "multi_gpu: 2", "`multi_gpu` must be true or false, got 2"),
        ],
    )
    def test_values_of_another_type_are_named(self, options, flags, yaml, message):
        with pytest.raises(ValueError, match=message):
            options(flags, yaml)

    @pytest.mark.parametrize("flags", [["--module"], ["--no_python"]])
    def test_which_program_runs_is_not_the_users_choice(self, options, flags):
        with pytest.raises(ValueError, match="unknown flag"):
            options(flags)

    def test_a_launcher_only_where_needed(self, monkeypatch, tmp_path):
        from accelerate.commands.config import config_args

        from trl_ext import devices

        monkeypatch.setattr(devices, "accelerator_count", lambda: 1)
        assert not needs_launcher({})
        assert needs_launcher({"num_processes": 1})
        monkeypatch.setattr(devices, "accelerator_count", lambda: 2)
        assert needs_launcher({})
        monkeypatch.setattr(devices, "accelerator_count", lambda: 1)
        (tmp_path / "default_config.yaml").write_text("")
        monkeypatch.setattr(config_args, "default_config_file", str(tmp_path / "default_config.yaml"))
        assert needs_launcher({})

    def test_inside_a_launcher(self, monkeypatch):
        monkeypatch.setenv("LOCAL_RANK", "0")
        monkeypatch.setenv("WORLD_SIZE", "2")
        assert not needs_launcher({})
        with pytest.raises(ValueError, match="`num_processes`: a launcher has started this process already"):
            needs_launcher({"num_processes": 2})

    def launched(self, monkeypatch, options, accelerator=False):
        """What accelerate's launcher receives."""
        import accelerate.commands.launch

        from trl_ext import devices

        seen = []
        monkeypatch.setattr(devices, "accelerator_count", lambda: int(accelerator))
        monkeypatch.setattr(accelerate.commands.launch, "launch_command", seen.append)
        assert cli_launch.launch(options, "word", ["--seed", "3"]) == 0
        return seen[0]

    def test_runs_the_training_module_with_our_arguments(self, monkeypatch):
        options = self.launched(monkeypatch, {"num_processes": 1})
        assert options.module
        assert options.training_script == "trl_ext.cli.train"
        assert options.training_script_args == ["word", "--seed", "3"]

    def test_flags_win_over_accelerates_file(self, monkeypatch):
        """accelerate keeps what `nondefault` lists, and takes the rest from its file."""
        options = self.launched(monkeypatch, {"fsdp_version": "1", "config_file": resolve_accelerate_config("fsdp2")})
        from accelerate.commands.launch import _validate_launch_command

        validated, *_ = _validate_launch_command(options)
        assert (validated.fsdp_version, validated.fsdp_state_dict_type) == ("1", "FULL_STATE_DICT")

    def test_several_processes_without_accelerator_are_several(self, monkeypatch):
        assert self.launched(monkeypatch, {"num_processes": 2}).multi_gpu
        options = self.launched(monkeypatch, {"num_processes": 2, "cpu": True})
        assert options.multi_gpu
        assert not options.cpu
        assert not self.launched(monkeypatch, {"num_processes": 1}).multi_gpu

    def test_cpu_processes_beside_an_accelerator_would_be_one(self, monkeypatch):
        with pytest.raises(ValueError, match="would start a single process"):
            self.launched(monkeypatch, {"num_processes": 2, "cpu": True}, accelerator=True)

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
        assert f"p: interrupted. There is no checkpoint in {tmp_path} to resume from yet" in capsys.readouterr().err

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


@pytest.mark.parametrize("options", [{"use_deepspeed": True}, {"config_file": resolve_accelerate_config("zero2")}])
def test_deepspeed_that_is_not_installed_names_the_extra(options, monkeypatch):
    real = cli_launch.importlib.util.find_spec
    monkeypatch.setattr(
        cli_launch.importlib.util, "find_spec", lambda name: None if name == "deepspeed" else real(name)
    )
    with pytest.raises(ImportError, match=r"pip install 'trl-ext\[deepspeed\]'"):
        cli_launch.launch({**options, "num_processes": 2}, NAME, [])
