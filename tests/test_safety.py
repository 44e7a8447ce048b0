# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0
"""Nothing that comes with a model, a checkpoint or a dataset is executed, unless the user asks for it by name."""

import ast
import contextlib
import dataclasses
import importlib
import inspect
import json
import os
import pickle
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import jinja2
import pytest
import torch
import yaml
from conftest import REPOSITORY, make_model, make_tokenizer
from jinja2.exceptions import SecurityError
from peft import LoraConfig, get_peft_model
from tiny_trainers import METHODS, make_trainer

from trl_ext import ProxyModel, PSLEConfig, ValueModel
from trl_ext.cli.arguments import LoadingArguments
from trl_ext.cli.evaluate import EvaluateArguments, EvaluateLoadingArguments
from trl_ext.cli.launch import resolve_accelerate_config
from trl_ext.data.chat_template import render, use_chat_template
from trl_ext.data.load import load_dataset
from trl_ext.data.schema import DataError
from trl_ext.method import discover
from trl_ext.methods.psle.data import load_principles
from trl_ext.models.load import load_model
from trl_ext.models.tokenizers import load_tokenizer
from trl_ext.rewards.functions import load_rewards
from trl_ext.settings_file import read_config


SOURCES = sorted((REPOSITORY / "trl_ext").rglob("*.py"))


class Bomb:
    """Pickled, it leaves a file when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.trace),)


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    """What is there after foreign code has run."""
    return tmp_path / "it-ran"


def plant(trace: Path, file: Path) -> None:
    """Replace the weights beside `file` by a pickled bomb under that name."""
    for weights in file.parent.glob("*.safetensors"):
        weights.unlink()
    torch.save({"weight": Bomb(trace)}, file)


class TestWeights:
    def test_the_bomb_works(self, tmp_path: Path, trace: Path) -> None:
        pickle.loads(pickle.dumps(Bomb(trace)))
        assert trace.exists()

    @pytest.mark.parametrize("head", ["causal_lm", "sequence_classification", "none"])
    def test_pickled_models_are_refused(self, tmp_path: Path, trace: Path, head: str) -> None:
        make_model(80, num_labels=head == "sequence_classification").save_pretrained(tmp_path / "model")
        load_model(str(tmp_path / "model"), head=head)
        plant(trace, tmp_path / "model" / "pytorch_model.bin")
        with pytest.raises(OSError, match=r"pickled weights \(pytorch_model\.bin\), .*only safetensors are loaded"):
            load_model(str(tmp_path / "model"), head=head)
        assert not trace.exists()

    def test_those_that_are_asked_for_are_loaded_without_running_code(self, tmp_path: Path, trace: Path) -> None:
        model = make_model(80)
        model.save_pretrained(tmp_path / "model")
        plant(trace, tmp_path / "model" / "pytorch_model.bin")
        with pytest.raises(Exception, match=r"(?i)weights.only"):  # torch's own
            load_model(str(tmp_path / "model"), use_safetensors=False)
        assert not trace.exists()
        torch.save(model.state_dict(), tmp_path / "model" / "pytorch_model.bin")
        loaded = load_model(str(tmp_path / "model"), use_safetensors=False)
        assert torch.equal(loaded.lm_head.weight, model.lm_head.weight)

    def test_pickled_adapters_are_refused(self, tmp_path: Path, trace: Path) -> None:
        make_model(80).save_pretrained(tmp_path / "model")
        get_peft_model(load_model(str(tmp_path / "model")), LoraConfig(r=2)).save_pretrained(tmp_path / "adapter")
        load_model(str(tmp_path / "adapter"))
        plant(trace, tmp_path / "adapter" / "adapter_model.bin")
        with pytest.raises(OSError, match=r"pickled weights \(adapter_model\.bin\)"):
            load_model(str(tmp_path / "adapter"))
        assert not trace.exists()

    def test_pickled_adapters_of_value_models_are_refused(self, tmp_path: Path, trace: Path) -> None:
        make_model(80).save_pretrained(tmp_path / "model")
        made = ValueModel.from_backbone(
            str(tmp_path / "model"), peft_config=LoraConfig(r=2, target_modules=["q_proj"])
        )
        made.save_pretrained(tmp_path / "value")
        ValueModel.from_pretrained(str(tmp_path / "value"))
        (weights,) = (tmp_path / "value").rglob("adapter_model.safetensors")
        plant(trace, weights.with_suffix(".bin"))
        with pytest.raises(OSError, match=r"pickled weights \(adapter_model\.bin\)"):
            ValueModel.from_pretrained(str(tmp_path / "value"))
        assert not trace.exists()

    @pytest.mark.parametrize("kind", ["value", "proxy"])
    def test_what_a_method_saved_is_safetensors_or_nothing(self, kind: str, tmp_path: Path, trace: Path) -> None:
        language_model = make_model(80)
        made: Any = (
            ValueModel.from_backbone(language_model) if kind == "value" else ProxyModel.for_model(language_model)
        )
        made.save_pretrained(tmp_path / "saved")
        type(made).from_pretrained(str(tmp_path / "saved"))
        plant(trace, tmp_path / "saved" / "pytorch_model.bin")
        with pytest.raises(OSError, match="safetensors"):
            type(made).from_pretrained(str(tmp_path / "saved"))
        assert not trace.exists()

    @pytest.mark.parametrize("file", ["optimizer.pt", "scheduler.pt", "rng_state.pth"])
    def test_a_checkpoint_cannot_run_code(self, file: str, tmp_path: Path, trace: Path) -> None:
        """These are transformers' own; torch reads no more than tensors and numbers from them."""
        settings = {"max_steps": 2, "save_strategy": "steps", "save_steps": 1}
        make_trainer("rrhf", tmp_path, **settings).train()
        torch.save({"state": Bomb(trace)}, tmp_path / "checkpoint-1" / file)
        with pytest.raises(Exception, match=r"(?i)weights.only"):
            make_trainer("rrhf", tmp_path, **settings).train(resume_from_checkpoint=tmp_path / "checkpoint-1")
        assert not trace.exists()

    @pytest.mark.parametrize(
        ("method", "file"),
        [
            ("rrhf", "rollouts_0.json"),
            ("vas", "targets_0.safetensors"),
            ("vas", "normalization.json"),
            ("psle", "iterations_0.json"),
            ("proxy_rlhf", "decisions_0.json"),
            ("proxy_rlhf", "decisions_0.safetensors"),
            ("rrhf", "trl_ext_run.json"),
            ("rrhf", "trainer_state.json"),
            ("rrhf", "model.safetensors"),
        ],
    )
    def test_a_pickle_in_place_of_a_file_of_ours_is_an_error(
        self, method: str, file: str, tmp_path: Path, trace: Path
    ) -> None:
        """Whatever a checkpoint's file is named: it is read as JSON or safetensors, or not at all."""
        settings: dict[str, Any] = {"max_steps": 2, "save_strategy": "steps", "save_steps": 1}
        more: dict[str, dict[str, Any]] = {
            "vas": {"resample_steps": 0, "num_epochs_per_batch": 2, "normalize_rewards": True},
            "proxy_rlhf": {"num_ppo_epochs": 2},
        }
        settings |= more.get(method, {})
        make_trainer(method, tmp_path, **settings).train()
        planted = tmp_path / "checkpoint-1" / file
        assert planted.is_file()
        planted.write_bytes(pickle.dumps(Bomb(trace)))
        with pytest.raises(Exception) as caught:
            make_trainer(method, tmp_path, **settings).train(resume_from_checkpoint=tmp_path / "checkpoint-1")
        assert isinstance(caught.value, ValueError) or type(caught.value).__name__ == "SafetensorError"
        assert not trace.exists()


def test_nothing_of_ours_is_pickled_or_evaluated() -> None:
    """What loads code from data appears nowhere: pickle and its relatives, `torch.load`, NumPy's objects, `eval`."""
    unsafe = re.compile(
        r"\btorch\.(?:save|load)\b|\b(?:c?[pP]ickle|joblib|dill|shelve|marshal)\b|allow_pickle|\bread_pickle\b"
        r"|(?<![\w.])(?:eval|exec)\(|weights_only=False|\bjinja2\b|yaml\.(?:full_load|unsafe_load|Loader\b|FullLoader)"
        r"|shell=True|os\.system"
    )
    for path in SOURCES:
        found = unsafe.findall(path.read_text())
        assert not found, f"{path}: {found}"


class TestData:
    """Datasets and settings are data."""

    def test_pickled_files_are_not_read(self, tmp_path: Path, trace: Path) -> None:
        (tmp_path / "rows").mkdir()
        for name in ("rows.pkl", "rows/train.pkl", "rows/train.pickle"):
            (tmp_path / name).write_bytes(pickle.dumps(Bomb(trace)))
        for name in ("rows.pkl", "rows"):
            with pytest.raises(Exception):  # noqa: B017 # ours for the file, that of `datasets` for the folder
                load_dataset(str(tmp_path / name))
        assert not trace.exists()

    def test_a_script_beside_a_dataset_is_not_run(self, tmp_path: Path, trace: Path) -> None:
        folder = tmp_path / "rows"
        folder.mkdir()
        (folder / "rows.py").write_text(f"import os\nos.mkdir({str(trace)!r})\n")
        with pytest.raises(Exception):  # noqa: B017 # that of `datasets`
            load_dataset(str(folder))
        (folder / "train.jsonl").write_text('{"prompt": "a"}\n')
        with contextlib.suppress(Exception):  # whether `datasets` takes the rows then or refuses the folder
            load_dataset(str(folder))
        assert not trace.exists()

    def test_yaml_makes_no_objects(self, tmp_path: Path, trace: Path) -> None:
        file = tmp_path / "settings.yaml"
        file.write_text(f"seed: !!python/object/apply:os.mkdir [{str(trace)!r}]\n")
        with pytest.raises(ValueError, match=r"settings\.yaml is not valid YAML: could not determine a constructor"):
            read_config(str(file))
        with pytest.raises(ValueError, match="is not an accelerate config: could not determine a constructor"):
            resolve_accelerate_config(str(file))
        with pytest.raises(DataError, match="is not YAML: could not determine a constructor"):
            load_principles(PSLEConfig(output_dir=str(tmp_path), principles_file=str(file)))
        assert not trace.exists()
        yaml.unsafe_load(file.read_text())
        assert trace.exists(), "the bomb works"


MESSAGES = [{"role": "user", "content": "the film"}]


class TestChatTemplates:
    """They are rendered in the sandbox of transformers, wherever they come from."""

    @pytest.fixture(params=["globals", "subclasses", "filter"])
    def hostile(self, request: pytest.FixtureRequest, trace: Path) -> str:
        """Templates that reach the modules of Python through the attributes of an object."""
        path = repr(str(trace))
        ways = {
            "globals": f"{{{{ cycler.__init__.__globals__.os.mkdir({path}) }}}}",
            "subclasses": "{% for c in ().__class__.__base__.__subclasses__() if c.__name__ == 'Cycler' %}"
            f"{{{{ c.__init__.__globals__['os'].mkdir({path}) }}}}{{% endfor %}}",
            "filter": f"{{{{ (joiner|attr('__init__')).__globals__['os'].mkdir({path}) }}}}",
        }
        return ways[request.param]

    def test_the_bombs_work(self, hostile: str, trace: Path) -> None:
        jinja2.Environment().from_string(hostile).render(messages=MESSAGES)
        assert trace.exists()

    def test_of_a_tokenizer(self, hostile: str, trace: Path, tmp_path: Path) -> None:
        tokenizer = make_tokenizer(chat=True)
        tokenizer.chat_template = hostile
        with pytest.raises(SecurityError):
            render(tokenizer, MESSAGES)
        tokenizer.save_pretrained(tmp_path)
        with pytest.raises(SecurityError):
            render(load_tokenizer(str(tmp_path)), MESSAGES)
        assert not trace.exists()

    def test_of_a_file(self, hostile: str, trace: Path, tmp_path: Path) -> None:
        (tmp_path / "template.jinja").write_text(hostile)
        tokenizer = make_tokenizer()
        use_chat_template(tokenizer, str(tmp_path / "template.jinja"))
        with pytest.raises(SecurityError):
            render(tokenizer, MESSAGES)
        assert not trace.exists()

    @pytest.mark.parametrize("method", METHODS)
    def test_in_a_training(self, method: str, hostile: str, trace: Path, tmp_path: Path) -> None:
        tokenizer = make_tokenizer(chat=True)
        tokenizer.chat_template = hostile
        rows = [{"prompt": MESSAGES}] * 4
        with pytest.raises(Exception, match="unsafe"):
            make_trainer(method, tmp_path / "out", rows, tokenizer=tokenizer, max_steps=1).train()
        assert not trace.exists()

    def test_of_a_row(self, hostile: str, trace: Path, tmp_path: Path) -> None:
        """A row's arguments of the template may name another template."""
        rows = [{"prompt": MESSAGES, "chat_template_kwargs": {"chat_template": hostile}}] * 4
        with pytest.raises(Exception, match="unsafe"):
            make_trainer("rrhf", tmp_path / "out", rows, chat=True, max_steps=1).train()
        assert not trace.exists()

    def test_the_text_of_a_message_is_no_template(self, hostile: str, trace: Path) -> None:
        messages = [{"role": "user", "content": hostile}]
        assert hostile in render(make_tokenizer(chat=True), messages) and not trace.exists()


class TestWiring:
    """What looks for known vulnerabilities every night cannot be run without a network; that it is run can be seen."""

    def test_the_nightly_audit(self) -> None:
        jobs = yaml.safe_load((REPOSITORY / ".github" / "workflows" / "nightly.yml").read_text())["jobs"]
        assert [step["run"] for step in jobs["audit"]["steps"] if "run" in step] == [".ci/audit"]
        script = REPOSITORY / ".ci" / "audit"
        assert os.access(script, os.X_OK)
        subprocess.run(["bash", "-n", str(script)], check=True)
        assert re.search(r"pip-audit\S* .*--requirement constraints\.txt", script.read_text())

    def test_the_audit_reads_every_line(self) -> None:
        """Without resolving dependencies, pip-audit takes exact versions only."""
        lines = (REPOSITORY / "constraints.txt").read_text().splitlines()
        pins = [line for line in lines if line.strip() and not line.startswith("#")]
        assert len(pins) > 50 and all(re.fullmatch(r"[\w.-]+==[\w.+!-]+", pin) for pin in pins)

    def test_the_linter_looks_for_unsafe_calls(self) -> None:
        rules = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["ruff"]["lint"]
        assert {"S102", "S301", "S302", "S307", "S506"} <= set(rules["select"]) and not set(rules["ignore"]) & {"S"}


class TestRemoteCode:
    def test_it_is_off_wherever_it_can_be_set(self) -> None:
        classes = [LoadingArguments, EvaluateLoadingArguments, EvaluateArguments]
        classes += [discover().methods[name].method.config_class() for name in METHODS]
        fields = [field for cls in classes for field in dataclasses.fields(cls) if field.name == "trust_remote_code"]
        assert len(fields) >= 2 + len(METHODS)
        assert all(field.default is False for field in fields)

    def test_no_function_has_it_on(self) -> None:
        found = 0
        for path in SOURCES:
            passed = [
                node.value.value
                for node in ast.walk(ast.parse(path.read_text()))
                if isinstance(node, ast.keyword)
                and node.arg == "trust_remote_code"
                and isinstance(node.value, ast.Constant)
            ]
            assert True not in passed, path  # text of a card may say what its reader has to pass
            name = ".".join(path.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__")
            if name.endswith("__main__"):
                continue
            for _, value in inspect.getmembers(importlib.import_module(name), inspect.isfunction):
                parameter = inspect.signature(value).parameters.get("trust_remote_code")
                if parameter is not None and value.__module__.startswith("trl_ext"):
                    assert parameter.default in (False, parameter.empty), value
                    found += 1
        assert found >= 3

    def test_code_of_a_model_is_not_run(self, tmp_path: Path, trace: Path) -> None:
        folder = tmp_path / "model"
        make_model(80).save_pretrained(folder)
        make_tokenizer().save_pretrained(folder)
        config = json.loads((folder / "config.json").read_text())
        auto = {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model", "AutoModel": "code.Model"}
        config |= {"model_type": "of_its_own", "auto_map": auto, "architectures": ["Model"]}
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "code.py").write_text(f"import os\nos.mkdir({str(trace)!r})\n")
        for head in ("causal_lm", "sequence_classification", "none"):
            with pytest.raises(ValueError, match="trust_remote_code"):
                load_model(str(folder), head=head)
        for kind, name in ((ValueModel, "value model"), (ProxyModel, "proxy")):
            with pytest.raises(ValueError, match=f"is a model of type 'of_its_own', not a {name}"):
                kind.from_pretrained(str(folder))
        assert not trace.exists()


class TestRewardFunctions:
    @pytest.fixture
    def module(self, tmp_path: Path, trace: Path, monkeypatch: pytest.MonkeyPatch) -> str:
        """A file in the current directory that leaves a trace when it is imported."""
        (tmp_path / "planted.py").write_text(
            f"import os\nos.mkdir({str(trace)!r})\ndef reward(completions, **_): return [1.0] * len(completions)\n"
        )
        monkeypatch.chdir(tmp_path)
        monkeypatch.delitem(sys.modules, "planted", raising=False)
        monkeypatch.setattr(sys, "path", [*sys.path])
        return "planted:reward"

    def test_a_function_that_is_named_is_imported(self, module: str, trace: Path) -> None:
        (reward,) = load_rewards(module)
        assert trace.exists() and reward(["a"], ["b"]) == [1.0]

    def test_one_that_only_the_data_names_is_not(self, module: str, trace: Path, tmp_path: Path) -> None:
        rows = [{"prompt": "the film", "reward_funcs": module, "reward": module} for _ in range(4)]
        make_trainer("rrhf", tmp_path / "out", rows, max_steps=1).train()
        assert not trace.exists()

    def test_other_names_import_nothing(self, module: str, trace: Path, tmp_path: Path) -> None:
        (tmp_path / "planted").mkdir()  # a classifier's directory is one, whatever modules there are
        for name in ("think_format_reward", "planted", "no-such-organisation/planted"):
            with contextlib.suppress(OSError, ValueError):
                load_rewards(name)
        assert not trace.exists() and "planted" not in sys.modules
