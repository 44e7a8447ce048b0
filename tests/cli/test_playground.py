# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""`trl-ext playground`: settings that cannot work, models that guides do not fit, and the command in a process."""

import re
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from conftest import HANGS, make_llama2_tokenizer, make_model, make_tokenizer

from trl_ext import ValueModel
from trl_ext.cli import playground
from trl_ext.cli.arguments import LoadingArguments
from trl_ext.cli.main import main
from trl_ext.cli.playground import PlaygroundArguments, load_models
from trl_ext.methods.vas.policies import VASDecoding


M = ["--model_name_or_path", "M"]
S = ["--server", "http://127.0.0.1:9/v1"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "--model_name_or_path or --server"),
        ([*M, "--host", "0.0.0.0"], "--password_variable"),
        ([*M, "--password_variable", "NO_SUCH_PASSWORD"], "NO_SUCH_PASSWORD"),
        ([*M, "--port", "70000"], "port"),
        ([*M, "--max_batch_size", "0"], "max_batch_size"),
        ([*M, "--max_weight", "0"], "max_weight"),
        ([*M, "--num_generations", "2"], "num_generations"),
        ([*M, "--cuda_graphs", "always"], "cuda_graphs"),
        ([*M, "--min_p", "0.1"], "min_p"),
        ([*M, "--temperature", "-1"], "temperature"),
        ([*M, "M"], "two models called 'M'"),
        ([*M, "--server_timeout", "3"], "without `server`"),
        ([*M, "--server_beta", "3"], "without `server`"),
        ([*S, "--server_beta", "much"], "`server_beta` must be a number, or name=number"),
        ([*S, "--server_beta", "a=1e39"], "`server_beta` must be a finite number"),
        ([*S, "--server_timeout", "-3"], "server_timeout"),
        ([*S, "--load_in_4bit", "true"], "without `model_name_or_path`"),
        ([*S, "--max_batch_size", "3"], "without `model_name_or_path`"),
        ([*S, "--server_key_variable", "NO_SUCH_KEY"], "NO_SUCH_KEY"),
        (["--server", "localhost:8000"], "must be an address"),
        ([*M, "--endpoint", "http://x/v1", "--endpoint_model", "m", "--endpoint_tokenizer", "t"], "pass --server"),
    ],
)
def test_settings_that_cannot_work(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, words: list[str], message: str
) -> None:
    """Before anything is loaded or started."""

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("loaded")

    monkeypatch.setattr(playground, "load_models", never)
    monkeypatch.setattr(playground, "launch", never)
    monkeypatch.setattr(playground, "check_gradio", lambda: None)
    monkeypatch.delenv("SPACE_ID", raising=False)
    assert main(["playground", *words]) == 2
    assert message in capsys.readouterr().err


def test_a_missing_package_is_named(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trl_ext.playground.running.is_installed", lambda package: False)
    assert main(["playground", *M]) != 0
    assert "pip install 'trl-ext[playground]'" in capsys.readouterr().err


def test_a_server_that_is_not_there(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Its address and what to look at, before models are loaded."""
    monkeypatch.setattr(playground, "check_gradio", lambda: None)
    assert main(["playground", *S, *M]) == 1
    error = capsys.readouterr().err
    assert "http://127.0.0.1:9/v1" in error and "Is the server running" in error


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A model, one with another vocabulary, and a value model for the first."""
    folder = tmp_path_factory.mktemp("models")
    tokenizer, other = make_tokenizer(), make_llama2_tokenizer()
    value_model = ValueModel.from_backbone(make_model(len(tokenizer), seed=1), tokenizer=tokenizer)
    found = {"tiny": make_model(len(tokenizer)), "other": make_model(len(other)), "value": value_model}
    for name, each in found.items():
        each.save_pretrained(folder / name)
        (other if name == "other" else tokenizer).save_pretrained(folder / name)
    return {name: str(folder / name) for name in found}


def test_models_with_the_guides_that_fit(saved: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    """Each model is there, plain and guided; what does not fit is printed, and is an error if it fits none."""
    decoding = VASDecoding(value_model_name_or_path=[saved["value"]], beta=["2"])
    both = PlaygroundArguments(model_name_or_path=[saved["tiny"], saved["other"]])
    first, second = load_models(both, LoadingArguments(), [decoding])
    assert list(first.by_name) == ["tiny", "tiny+value"] and list(second.by_name) == ["other"]
    assert "other stays unguided" in capsys.readouterr().err
    with pytest.raises(ValueError, match="vocabulary"):
        load_models(PlaygroundArguments(model_name_or_path=[saved["other"]]), LoadingArguments(), [decoding])


@pytest.mark.slow
def test_the_command_until_a_signal(saved: dict[str, str], tmp_path: Path) -> None:
    pytest.importorskip("gradio", reason="the extra `playground` is not installed")
    words = ["--model_name_or_path", saved["tiny"], "--value_model_name_or_path", saved["value"], "--beta", "2"]
    with subprocess.Popen(
        [sys.executable, "-m", "trl_ext", "playground", *words], stderr=subprocess.PIPE, text=True, cwd=tmp_path
    ) as process:
        try:
            assert process.stderr is not None
            url = ""
            for line in process.stderr:
                if found := re.search(r"the playground is at (http\S+)", line):
                    url = found[1]
                    break
            assert "trl-ext playground" in urllib.request.urlopen(url).read().decode()
            process.send_signal(signal.SIGINT)
            assert process.wait(HANGS) == 0
        finally:
            process.kill()
