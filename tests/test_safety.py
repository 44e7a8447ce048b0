# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0
"""Nothing that comes with a model, a checkpoint or a dataset is executed, unless the user asks for it by name."""

import contextlib
import dataclasses
import importlib
import inspect
import json
import os
import pickle
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import REPOSITORY, make_model, make_tokenizer
from peft import LoraConfig, get_peft_model
from tiny_trainers import METHODS, make_trainer

from trl_ext import ProxyModel, ValueModel
from trl_ext.cli.arguments import LoadingArguments
from trl_ext.cli.evaluate import EvaluateArguments, EvaluateLoadingArguments
from trl_ext.method import discover
from trl_ext.models.load import load_model
from trl_ext.rewards.functions import load_rewards


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


def test_nothing_of_ours_is_pickled() -> None:
    """`torch.save`, `torch.load` and `pickle` appear nowhere."""
    for path in SOURCES:
        found = re.findall(
            r"\btorch\.(?:save|load)\b|\b(?:c?[pP]ickle|joblib|dill|shelve|marshal)\b", path.read_text()
        )
        assert not found, f"{path}: {found}"


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
            assert "trust_remote_code=True" not in path.read_text(), path
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
