# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""The training script: data, arguments, a training from a recipe, and bad input."""

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from trl_ext.cli import main as cli
from trl_ext.cli import train as cli_train
from trl_ext.cli.main import main
from trl_ext.method import Method, discover


NAME = "rrhf"  # a method that trains on rows with completions, as the tests below do


def metrics(folder):
    """The lines of the metrics file of a run, without its speed."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [
        {name: value for name, value in line.items() if not name.endswith(("runtime", "second"))} for line in lines
    ]


class TestArguments:
    @pytest.mark.parametrize(
        ("value", "meaning"), [("true", True), ("False", None), (None, None), ("out/checkpoint-3", "out/checkpoint-3")]
    )
    def test_resume_from(self, value, meaning):
        assert cli_train._resume_from(value) == meaning

    @pytest.mark.parametrize("head", ["1", "POSITIVE", '[POSITIVE, ""]'])
    def test_reward_settings_in_a_file_and_in_flags(self, head, yaml_file, tmp_path):
        """A label may be a number, a name or one per reward; what is a mapping is JSON in a flag."""
        file = yaml_file(f"reward_head: {head}\nreward_server_kwargs: {{timeout: 5}}\nreward_batch_size: 8\n")
        parser = cli_train.make_parser(discover().methods[NAME].method)
        flags = ["--config", file, "--output_dir", str(tmp_path), "--model_name_or_path=m", "--dataset_name=d"]
        _, _, args, _ = parser.parse_args_and_config([*flags, "--reward_model_init_kwargs", '{"dtype": "bfloat16"}'])
        assert args.reward_head == (["POSITIVE", ""] if "[" in head else [head])
        assert args.reward_model_init_kwargs == {"dtype": "bfloat16"} and args.reward_batch_size == 8
        assert args.reward_server_kwargs == {"timeout": 5}
        _, _, args, _ = parser.parse_args_and_config([*flags, "--reward_head", "1", "0", "--reward_pairs"])
        assert args.reward_head == ["1", "0"] and args.reward_pairs


class TestDatasets:
    @pytest.fixture
    def files(self, tmp_path):
        for name, rows in (("train", 3), ("other", 2)):
            lines = [json.dumps({"prompt": f"{name} {i}", "chosen": "a", "rejected": "b"}) for i in range(rows)]
            (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
        return tmp_path

    def load(self, strategy="no", **arguments):
        script = cli_train.TrainArguments(**{key: str(value) for key, value in arguments.items()})
        return cli_train.load_datasets(script, SimpleNamespace(eval_strategy=strategy), SimpleNamespace(datasets=[]))

    def test_one_file(self, files):
        train, evaluation = self.load(dataset_name=files / "train.jsonl")
        assert len(train) == 3
        assert evaluation is None

    def test_another_file_to_evaluate_on(self, files, caplog):
        arguments = {"dataset_name": files / "train.jsonl", "eval_dataset_name": files / "other.jsonl"}
        train, evaluation = self.load("steps", **arguments)
        assert (len(train), len(evaluation)) == (3, 2)
        assert not caplog.records
        assert self.load("no", **arguments)[1] is None
        assert "`eval_dataset_name` is not used" in caplog.text  # a log line, not a warning with the line of the code

    def test_splits_of_a_directory(self, files):
        (files / "other.jsonl").rename(files / "test.jsonl")
        train, evaluation = self.load("epoch", dataset_name=files)
        assert (len(train), len(evaluation)) == (3, 2)

    def test_missing_splits_name_those_found(self, files):
        with pytest.raises(
            ValueError, match=r"train\.jsonl has no split 'test', only train: set `dataset_test_split`, set"
        ):
            self.load("steps", dataset_name=files / "train.jsonl")
        with pytest.raises(ValueError, match=r"has no split 'first', only train: set `dataset_train_split`$"):
            self.load(dataset_name=files / "train.jsonl", dataset_train_split="first")


class TestTrainerArguments:
    class Trainer:
        def __init__(self, model=None, args=None, train_dataset=None):
            self.given = {"model": model, "args": args, "train_dataset": train_dataset}

    def test_unset_arguments_are_left_out(self):
        trainer = cli_train.build_trainer(self.Trainer, model="m", args=1, peft_config=None)
        assert trainer.given == {"model": "m", "args": 1, "train_dataset": None}

    @pytest.mark.parametrize("name", ["reward_funcs", "peft_config", "quantization_config", "eval_dataset"])
    def test_set_arguments_that_it_does_not_take(self, name):
        with pytest.raises(ValueError, match=f"Trainer takes no `{name}`: .*--"):
            cli_train.build_trainer(self.Trainer, model="m", **{name: "set"})

    def test_model_init_kwargs(self):
        model = SimpleNamespace(
            model_revision="main", attn_implementation=None, dtype="auto", load_in_4bit=False, load_in_8bit=False
        )
        args = SimpleNamespace(model_init_kwargs={"revision": "mine", "use_cache": False})
        cli_train.add_model_init_kwargs(args, model)
        assert args.model_init_kwargs == {"revision": "mine", "dtype": "auto", "use_cache": False}
        for bits in ("load_in_4bit", "load_in_8bit"):  # TRL's default dtype is for models that are not quantized
            given = SimpleNamespace(**vars(model) | {"dtype": "float32", bits: True})
            args = SimpleNamespace(model_init_kwargs=None)
            cli_train.add_model_init_kwargs(args, given)
            assert args.model_init_kwargs["dtype"] == "auto"
        cli_train.add_model_init_kwargs(SimpleNamespace(), model)  # a stranger's config may have no such field


class TestRunSettings:
    @pytest.mark.parametrize(
        ("given", "processes"), [({}, 2), ({"num_processes": 2}, 2), ({"accelerate_config": "fsdp2"}, None)]
    )
    def test_processes_that_the_environment_chose(self, given, processes):
        args = SimpleNamespace(world_size=2, output_dir="/out", seed=3)
        values = cli_train._run_settings(given | {"resume_from_checkpoint": "true"}, args).values
        assert values.get("num_processes") == processes
        assert (values["output_dir"], values["seed"]) == ("/out", 3) and "resume_from_checkpoint" not in values


class TestTrain:
    @pytest.fixture
    def recipe(self, tmp_path, tiny_model_dir, yaml_file):
        rows = [
            {"prompt": f"the film {i}", "completions": [" was good", " was very bad", " is on"], "scores": [2, 0, 1]}
            for i in range(8)
        ]
        (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
        return yaml_file(f"""
            model_name_or_path: {tiny_model_dir}
            dataset_name: {tmp_path / "rows.jsonl"}
            output_dir: {tmp_path / "out"}
            max_steps: 4
            save_steps: 2
            per_device_train_batch_size: 2
            gradient_checkpointing: false
            learning_rate: 1e-3
            report_to: none
            logging_steps: 1
            disable_tqdm: true
        """)

    def test_a_method_from_a_recipe(self, recipe, tmp_path, capsys):
        assert main([NAME.replace("_", "-"), "--config", recipe, "--seed", "5"]) == 0
        assert f"Saved to {tmp_path / 'out'}" in capsys.readouterr().out
        state = json.loads((tmp_path / "out" / "checkpoint-4" / "trainer_state.json").read_text())
        assert state["global_step"] == 4
        assert (tmp_path / "out" / "model.safetensors").is_file()

    def test_the_run_that_config_yaml_repeats_from_another_folder(self, recipe, tmp_path, monkeypatch):
        """The recipe names its rows beside it, a flag its folder; both runs log the same numbers."""
        text = Path(recipe).read_text().replace(str(tmp_path / "rows.jsonl"), "rows.jsonl")
        Path(recipe).write_text(f"{text}env: {{MY_API_KEY: not-for-files, MINE: '1'}}\n")
        monkeypatch.setenv("MINE", "")
        monkeypatch.setenv("MY_API_KEY", "")
        monkeypatch.chdir(tmp_path)
        words = ["--output_dir", "first", "--save_strategy", "no", "--eos_token", "<|im_end|>", "--hub-token", "hf_x"]
        assert main([NAME, "--config", "config.yaml", *words]) == 0
        written = tmp_path / "first" / "config.yaml"
        assert yaml.safe_load(written.read_text()) == yaml.safe_load(text) | {
            "env": {"MINE": "1"},
            "dataset_name": str(tmp_path / "rows.jsonl"),
            "output_dir": str(tmp_path / "first"),
            "save_strategy": "no",
            "learning_rate": 1e-3,
            "eos_token": "<|im_end|>",
            "seed": 42,
        }
        assert f"#   trl-ext {NAME} --config {written}" in written.read_text()
        assert "not-for-files" not in written.read_text() and "hf_x" not in written.read_text()

        before = metrics(tmp_path / "first")
        monkeypatch.chdir("/")
        assert main([NAME, "--config", str(written)]) == 0
        assert metrics(tmp_path / "first") == before and len(before) == 5

    def test_goes_on_from_the_newest_checkpoint(self, recipe, tmp_path):
        assert main([NAME, "--config", recipe, "--max_steps", "2"]) == 0
        assert main([NAME, "--config", recipe, "--resume_from_checkpoint", "true"]) == 0
        state = json.loads((tmp_path / "out" / "checkpoint-4" / "trainer_state.json").read_text())
        steps = [entry["step"] for entry in state["log_history"] if "loss" in entry]
        assert steps == [1, 2, 3, 4]
        assert [line["step"] for line in metrics(tmp_path / "out")] == [1, 2, 3, 4, 4]  # the last is the summary
        assert "resume_from_checkpoint" not in (tmp_path / "out" / "config.yaml").read_text()

    def test_adapter_and_dtype(self, recipe, tmp_path):
        assert main([NAME, "--config", recipe, "--use_peft", "--lora_r", "4", "--dtype", "auto"]) == 0
        adapter = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
        targets = {name.rpartition(".")[2] for name in adapter["target_modules"]}
        assert adapter["r"] == 4 and len(targets) == 7  # all linear layers
        assert "An adapter for" in (tmp_path / "out" / "README.md").read_text()

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (["--length_penaltyy", "1"], "unknown flag '--length_penaltyy'"),
            (["--dataset_name", "/no/file.jsonl"], "/no/file.jsonl"),
            (["--model_name_or_path", "/no/model"], "/no/model"),
            (["--eval_strategy", "steps", "--eval_steps", "1"], "has no split 'test', only train"),
            (["--temperature", "-1"], "temperature"),
            (["--output_dir", __file__], "`output_dir`"),
        ],
    )
    def test_errors_are_one_line_and_status_2(self, recipe, words, message, capsys):
        assert main([NAME, "--config", recipe, *words]) == 2
        errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("trl-ext")]
        assert len(errors) == 1
        assert errors[0].startswith(f"trl-ext {NAME}: error: ")
        assert message in errors[0]

    def test_unknown_key_in_the_file(self, recipe, capsys):
        with open(recipe, "a") as file:
            file.write("\nlength_penaltyy: 1\n")
        assert main([NAME, "--config", recipe]) == 2
        assert f"{recipe}: unknown key 'length_penaltyy'; did you mean 'length_penalty'?" in capsys.readouterr().err

    def test_no_such_method(self):
        with pytest.raises(ValueError, match="there is no method 'nothing'"):
            cli_train.main(["nothing"])

    def test_method_whose_classes_do_not_import(self, monkeypatch, capsys):
        broken = Method("broken", "", "", "no_such_module:Config", "no_such_module:Trainer")
        discovery = discover()
        discovery.methods["broken"] = dataclasses.replace(discovery.methods[NAME], method=broken)
        monkeypatch.setattr(cli, "discover", lambda: discovery)
        monkeypatch.setattr(cli_train, "discover", lambda: discovery)
        assert main(["broken"]) == 2
        assert "no_such_module" in capsys.readouterr().err
