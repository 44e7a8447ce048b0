# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Where value models are saved and found again: folders, revisions, tokens, code of the backbone, moved backbones."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make_model, make_tokenizer
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import AutoModel, AutoModelForCausalLM

import trl_ext.methods.vas.value_model.backbone_model as backbone_model
from trl_ext import ValueModel, VASConfig, VASTrainer
from trl_ext.methods.vas.policies import VASDecoding


IDS = torch.tensor([[5, 9, 3, 7, 4, 11], [6, 8, 2, 10, 12, 3]])
LORA = {"r": 4, "target_modules": ["q_proj", "up_proj"]}


def shake(model: ValueModel) -> ValueModel:
    """Random weights for heads and adapter, which start at zero."""
    generator = torch.Generator().manual_seed(3)
    for name, parameter in model.named_parameters():
        if "lora" in name or name.startswith(("head", "action")):
            parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


@pytest.fixture
def base(tmp_path: Path) -> str:
    make_model(64).save_pretrained(tmp_path / "base")
    return str(tmp_path / "base")


def adapter_on(backbone: Any, **kwargs: Any) -> ValueModel:
    return shake(ValueModel.from_backbone(backbone, peft_config=LoraConfig(**LORA), **kwargs))


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The arguments with which backbones are loaded."""
    found: list[dict[str, Any]] = []
    load = backbone_model.load_model

    def spy(name: str, **kwargs: Any) -> Any:
        found.append({"name": name, **kwargs})
        return load(name, **{key: value for key, value in kwargs.items() if key not in ("token", "cache_dir")})

    monkeypatch.setattr(backbone_model, "load_model", spy)
    return found


# ------------------------------------------------------------------------------------------------------------ places


@pytest.mark.parametrize("lora", [False, True], ids=["full", "adapter"])
def test_a_value_model_in_a_folder_of_a_directory(tmp_path: Path, base: str, lora: bool) -> None:
    model = adapter_on(base) if lora else shake(ValueModel.from_backbone(base))
    model.save_pretrained(tmp_path / "run" / "value")
    found = ValueModel.from_pretrained(tmp_path / "run", subfolder="value")
    torch.testing.assert_close(found(IDS).values, model(IDS).values)
    with pytest.raises(OSError, match=r"value model .*no folder 'valeu'"):
        ValueModel.from_pretrained(tmp_path / "run", subfolder="valeu")


def test_a_value_model_in_a_folder_is_trained_further(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    first = shake(ValueModel.from_backbone(make_model(len(tokenizer), seed=1)))
    first.save_pretrained(tmp_path / "runs" / "value")
    tokenizer.save_pretrained(tmp_path / "runs" / "value")
    args = VASConfig(str(tmp_path / "out"), report_to="none", value_model_init_kwargs={"subfolder": "value"})
    rows = [{"prompt": "the film", "completions": [" was good", " was bad"], "scores": [1.0, 0.0]}]
    trainer = VASTrainer(
        make_model(len(tokenizer)), args=args, train_dataset=Dataset.from_list(rows), processing_class=tokenizer,
        value_model=str(tmp_path / "runs"),
    )  # fmt: skip
    torch.testing.assert_close(trainer.model.eval()(IDS).values, first(IDS).values)


def test_the_backbone_is_loaded_with_the_users_token_and_its_own_revision(
    tmp_path: Path, base: str, loads: list[dict[str, Any]]
) -> None:
    shutil.copytree(base, tmp_path / "models" / "small")
    model = adapter_on(str(tmp_path / "models"), revision="v2", subfolder="small")
    model.save_pretrained(tmp_path / "value")
    hub = {"token": "a token", "cache_dir": str(tmp_path / "cache"), "revision": "v1"}
    found = ValueModel.from_pretrained(tmp_path / "value", **hub)
    torch.testing.assert_close(found(IDS).values, model(IDS).values)
    [given] = loads
    assert (given["name"], given["subfolder"], given["revision"]) == (str(tmp_path / "models"), "small", "v2")
    assert (given["token"], given["cache_dir"]) == (hub["token"], hub["cache_dir"])


def test_a_backbone_of_a_relative_path_is_found_from_another_directory(
    tmp_path: Path, base: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model = adapter_on("base")
    model.save_pretrained("value")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    torch.testing.assert_close(ValueModel.from_pretrained("../value")(IDS).values, model(IDS).values)


def test_a_backbone_that_was_moved(tmp_path: Path, base: str) -> None:
    model = adapter_on(base)
    model.save_pretrained(tmp_path / "value")
    os.rename(base, tmp_path / "moved")
    with pytest.raises(
        OSError, match=f"trained on the backbone '{base}'.*cannot be loaded.*backbone=model.*config.json"
    ):
        ValueModel.from_pretrained(tmp_path / "value")
    moved = AutoModelForCausalLM.from_pretrained(tmp_path / "moved")
    found = ValueModel.from_pretrained(tmp_path / "value", backbone=moved)
    torch.testing.assert_close(found(IDS).values, model(IDS).values)
    config = tmp_path / "value" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"backbone_name": "../moved"}))
    torch.testing.assert_close(ValueModel.from_pretrained(tmp_path / "value")(IDS).values, model(IDS).values)


def test_commands_refuse_what_is_no_value_model_before_anything_is_loaded(tmp_path: Path, base: str) -> None:
    with pytest.raises(OSError, match=r"Cannot load the value model '\./nothere', which is no local directory"):
        VASDecoding(value_model_name_or_path=["./nothere"]).check()
    with pytest.raises(ValueError, match="type 'llama', not a value model"):
        VASDecoding(value_model_name_or_path=[base]).check()


# ------------------------------------------------------------------------------------------------ code of the backbone


@pytest.fixture
def remote(tmp_path: Path, base: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """A backbone of a type that transformers does not know, with its code beside it."""
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder = Path(base)
    (folder / "configuration_own.py").write_text(
        "from transformers import LlamaConfig\n\n\nclass OwnConfig(LlamaConfig):\n    model_type = 'own_llama'\n"
    )
    (folder / "modeling_own.py").write_text(
        "from transformers import LlamaModel\n\nfrom .configuration_own import OwnConfig\n\n\n"
        "class OwnModel(LlamaModel):\n    config_class = OwnConfig\n"
    )
    config = json.loads((folder / "config.json").read_text())
    config |= {
        "model_type": "own_llama",
        "auto_map": {"AutoConfig": "configuration_own.OwnConfig", "AutoModel": "modeling_own.OwnModel"},
    }
    (folder / "config.json").write_text(json.dumps(config))
    return base


@pytest.mark.parametrize("lora", [False, True], ids=["full", "adapter"])
def test_a_backbone_with_code_of_its_own(tmp_path: Path, remote: str, lora: bool) -> None:
    trusted = {"trust_remote_code": True}
    model = adapter_on(remote, **trusted) if lora else shake(ValueModel.from_backbone(remote, **trusted))
    model.save_pretrained(tmp_path / "value")
    found = ValueModel.from_pretrained(tmp_path / "value", **trusted)
    assert "OwnModel" in str(found)
    torch.testing.assert_close(found(IDS).values, model(IDS).values)
    by_auto = AutoModel.from_pretrained(tmp_path, subfolder="value", **trusted)
    torch.testing.assert_close(by_auto(IDS).values, model(IDS).values)
    found.save_pretrained(tmp_path / "again")
    torch.testing.assert_close(
        ValueModel.from_pretrained(tmp_path / "again", **trusted)(IDS).values, model(IDS).values
    )
    with pytest.raises(ValueError, match=r"has code of its own: pass `trust_remote_code`"):
        ValueModel.from_pretrained(tmp_path / "value")
    decoding = VASDecoding(value_model_name_or_path=[str(tmp_path / "value")], value_trust_remote_code=True)
    decoding.check()
    loaded, _ = decoding.load_value_models(None)
    torch.testing.assert_close(loaded(IDS).values, model(IDS).values)  # type: ignore[operator]


# ------------------------------------------------------------------------------------------------- the language model


@pytest.mark.parametrize("target", ["all-linear", ["q_proj"]])
def test_a_policy_saves_itself_without_the_value_models_adapter(tmp_path: Path, target: Any) -> None:
    policy = make_model(64)
    logits, keys = policy(IDS).logits, set(policy.state_dict())
    lora = LoraConfig(r=4, target_modules=target, modules_to_save=["embed_tokens"])
    value_model = shake(ValueModel.on_policy(policy, peft_config=lora))
    assert set(policy.state_dict()) == keys
    policy.save_pretrained(tmp_path / "policy")
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "policy")
    torch.testing.assert_close(found(IDS).logits, logits)
    value_model.save_pretrained(tmp_path / "value")
    again = ValueModel.from_pretrained(tmp_path / "value", backbone=found)
    torch.testing.assert_close(again(IDS).values, value_model(IDS).values)
    found.save_pretrained(tmp_path / "second")
    assert {path.name for path in (tmp_path / "second").glob("*.safetensors")} == {"model.safetensors"}
    torch.testing.assert_close(AutoModelForCausalLM.from_pretrained(tmp_path / "second")(IDS).logits, logits)


def test_a_head_on_a_policy_with_an_adapter_is_not_loaded_without_it(tmp_path: Path, base: str) -> None:
    """The base model alone has other hidden states than those that the head was trained on."""
    policy = get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(**LORA))
    model = shake(ValueModel.on_policy(policy, form="policy"))
    model.save_pretrained(tmp_path / "value")
    with pytest.raises(ValueError, match="a head on a backbone whose name is unknown"):
        ValueModel.from_pretrained(tmp_path / "value")
    found = ValueModel.from_pretrained(tmp_path / "value", backbone=policy)
    torch.testing.assert_close(found(IDS).values, model(IDS).values, equal_nan=True)


def test_a_policy_has_one_hook_for_any_number_of_value_models() -> None:
    policy = make_model(64)
    for _ in range(3):
        ValueModel.on_policy(policy, peft_config=LoraConfig(**LORA))
    assert len(policy._state_dict_hooks) == 1


def test_an_adapter_that_the_policy_trains_is_saved(base: str) -> None:
    policy = AutoModelForCausalLM.from_pretrained(base)
    ValueModel.on_policy(policy, peft_config=LoraConfig(r=4, target_modules=["v_proj"]))
    trained = get_peft_model(policy, LoraConfig(**LORA), adapter_name="trained")
    assert any("lora_A.trained" in name for name in trained.state_dict())


# -------------------------------------------------------------------------------------------------------------- files


def test_weights_in_several_files(tmp_path: Path, base: str) -> None:
    model = shake(ValueModel.from_backbone(base, form="action"))
    model.save_pretrained(tmp_path / "value", max_shard_size="100KB")
    assert len(list((tmp_path / "value").glob("*.safetensors"))) > 1
    for found in (ValueModel.from_pretrained(tmp_path / "value"), AutoModel.from_pretrained(tmp_path / "value")):
        values = found(IDS, next_ids=IDS).values
        torch.testing.assert_close(values, model(IDS, next_ids=IDS).values)


def test_the_dtype_of_a_value_model_is_kept_if_asked(tmp_path: Path, base: str) -> None:
    model = ValueModel.from_backbone(base, dtype=torch.bfloat16)
    model.config.record_tokenizer(make_tokenizer())
    model.save_pretrained(tmp_path / "value")
    found = ValueModel.from_pretrained(tmp_path / "value", dtype="auto")
    assert found.get_input_embeddings().weight.dtype == torch.bfloat16
    assert found.head.weight.dtype == torch.float32


class Api:
    """The Hub: for each upload of a folder, what it has."""

    uploads: list[dict[str, Any]]

    def __init__(self, uploads: list[dict[str, Any]]) -> None:
        self.uploads = uploads

    def create_repo(self, name: str, **kwargs: Any) -> Any:
        return type("Repo", (), {"repo_id": name})

    def upload_folder(self, folder_path: str, **kwargs: Any) -> Any:
        files = {str(path.relative_to(folder_path)) for path in Path(folder_path).rglob("*") if path.is_file()}
        weights = Path(folder_path) / "adapter" / "adapter_model.safetensors"
        self.uploads.append({**kwargs, "files": files, "adapter": weights.read_bytes() if weights.exists() else b""})
        return type("Job", (), {"done": lambda self: True, "is_done": lambda self: True})()


def test_a_run_pushes_the_adapter_of_each_checkpoint(
    tmp_path: Path, base: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    uploads: list[dict[str, Any]] = []
    monkeypatch.setattr("transformers.trainer.hf_api", lambda *_, **__: Api(uploads))
    tokenizer = make_tokenizer()
    args = VASConfig(
        str(tmp_path / "out"), report_to="none", max_steps=2, save_strategy="steps", save_steps=1, push_to_hub=True,
        hub_model_id="me/value", hub_strategy="checkpoint", hub_token="a token", hub_private_repo=True,
        learning_rate=0.1, disable_tqdm=True,
    )  # fmt: skip
    rows = [{"prompt": "the film", "completions": [" was good", " was bad"], "scores": [1.0, 0.0]}] * 2
    trainer = VASTrainer(
        make_model(len(tokenizer)), args=args, train_dataset=Dataset.from_list(rows), processing_class=tokenizer,
        peft_config=LoraConfig(**LORA), value_model=make_model(len(tokenizer), seed=1),
    )  # fmt: skip
    trainer.train()
    trainer.push_to_hub()
    models = [upload for upload in uploads if "path_in_repo" not in upload]
    assert len(models) == 3 and {upload["token"] for upload in uploads} == {"a token"}
    for upload in models:
        assert {"config.json", "model.safetensors", "adapter/adapter_config.json", "README.md"} <= upload["files"]
    assert models[0]["adapter"] != models[1]["adapter"]
    assert "'me/value'" in (tmp_path / "out" / "README.md").read_text()
    assert {upload["path_in_repo"] for upload in uploads if "path_in_repo" in upload} == {"last-checkpoint"}
