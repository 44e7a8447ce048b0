# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""`trl-ext serve`: settings that cannot work, and the command in a process of its own, until a signal ends it."""

import json
import signal
import subprocess
import sys
import urllib.request
from typing import Any

import pytest
import torch
from conftest import HANGS
from running_server import make_value_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from trl_ext import ProxyModel
from trl_ext.cli import serve
from trl_ext.cli.decoding_flags import active_decodings
from trl_ext.cli.main import main
from trl_ext.cli.models import public_name


def error(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["serve", *words]) == 2
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "--model_name_or_path"),
        (["--model_name_or_path", "M", "--host", "0.0.0.0"], "--api_key_variable"),
        (["--model_name_or_path", "M", "--api_key_variable", "NO_SUCH_KEY"], "NO_SUCH_KEY"),
        (["--model_name_or_path", "M", "--port", "70000"], "port"),
        (["--model_name_or_path", "M", "--max_batch_size", "0"], "max_batch_size"),
        (["--model_name_or_path", "M", "--num_generations", "2"], "num_generations"),
        (["--model_name_or_path", "M", "--generation_batch_size", "2"], "max_batch_size"),
        (["--model_name_or_path", "M", "--cuda_graphs", "always"], "cuda_graphs"),
        (["--model_name_or_path", "M", "--temperature", "-1"], "temperature"),
        (
            [
                "--model_name_or_path",
                "M",
                "--endpoint",
                "http://x/v1",
                "--endpoint_model",
                "m",
                "--endpoint_tokenizer",
                "t",
            ],
            "another server",
        ),
    ],
)
def test_settings_that_cannot_work(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, words: list[str], message: str
) -> None:
    monkeypatch.setattr(serve, "check_uvicorn", lambda: None)
    assert message in error(capsys, *words)


def test_a_port_that_is_taken(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("uvicorn", reason="the extra `serve` is not installed")
    with serve.bind("127.0.0.1", 0) as sock:
        words = ["--model_name_or_path", "M", "--port", str(sock.getsockname()[1])]
        assert "--port" in error(capsys, *words)


def test_without_uvicorn(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from trl_ext.serving import server

    monkeypatch.setattr(server, "is_installed", lambda package: False)
    assert "trl-ext[serve]" in error(capsys, "--model_name_or_path", "M")


def test_a_directory_is_not_shown(tmp_path: Any) -> None:
    assert public_name(str(tmp_path / ".." / tmp_path.name)) == tmp_path.name
    assert public_name("Qwen/Qwen3-0.6B") == "Qwen/Qwen3-0.6B"


def test_every_combination_is_a_model(save_model: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    name = save_model(tmp_path / "tiny")
    model = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32)
    make_value_model(AutoTokenizer.from_pretrained(name)).save_pretrained(tmp_path / "value")
    ProxyModel.for_model(model).save_pretrained(tmp_path / "proxy")
    guide = f"guides:\n  - kind: value_model\n    name: again\n    model: {tmp_path / 'value'}\n"
    (tmp_path / "guides.yaml").write_text(guide)
    words = ["--model_name_or_path", name, "--dtype", "float32", "--guide", str(tmp_path / "guides.yaml")]
    words += ["--value_model_name_or_path", str(tmp_path / "value"), "--proxy_name_or_path", str(tmp_path / "proxy")]
    parser = serve.make_parser()
    args, limits, loading, *decodings = parser.parse_args_and_config(words)
    models = serve.load_models(args, limits, loading, active_decodings(decodings, parser.given))
    assert len(models.by_name) == 4 and {"tiny", "tiny+value", "tiny+proxy"} < set(models.by_name)
    settings = args.settings(max_completion_length=2, temperature=0.0)
    for policy in models.by_name.values():
        assert policy.observable and len(policy.generate([[5, 6]], settings)[0][0].ids) == 2
    args, limits, loading, *decodings = parser.parse_args_and_config([*words, "--beta", "1", "2"])
    with pytest.raises(ValueError, match="'tiny\\+value'"):
        serve.load_models(args, limits, loading, active_decodings(decodings, parser.given))


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_the_command_serves_until_a_signal(save_model: Any, tmp_path: Any, number: signal.Signals) -> None:
    pytest.importorskip("uvicorn", reason="the extra `serve` is not installed")
    name = save_model(tmp_path / "tiny")
    make_value_model(AutoTokenizer.from_pretrained(name)).save_pretrained(tmp_path / "value")
    command = [sys.executable, "-m", "trl_ext", "serve", "--model_name_or_path", name, "--port", "0"]
    command += ["--value_model_name_or_path", str(tmp_path / "value"), "--beta", "2", "--dtype", "float32"]
    command += ["--shutdown_timeout", str(2 * HANGS)]  # nothing runs, so that it is not waited for
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        line = ""
        while "serving" not in line:
            line = process.stderr.readline()
            assert line, process.wait()
        assert "serving tiny, tiny+value at http://127.0.0.1:" in line
        url = line.split(" at ")[1].split()[0]
        body = {"model": "tiny+value", "prompt": "the film", "max_tokens": 4, "beta": 1.5}
        request = urllib.request.Request(
            f"{url}/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=HANGS) as response:
            assert json.load(response)["usage"]["completion_tokens"] == 4
        process.send_signal(number)
        assert process.wait(HANGS) == 0
    finally:
        process.kill()
        process.wait()
