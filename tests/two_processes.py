# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
Training on two CPU processes, as the files of `recipes/accelerate` say, against training on one.

A module of `SOURCES` has functions `CASES[name](folder, batch_size) -> trainer`, which load `model_of(folder)` by
name, as users do: FSDP2 and ZeRO-3 take part in loading. `cases_of(kind)` names those of a kind of launch, `TWO_ONLY`
has more of them that are not compared with one process, and `check` looks at what else they left.

`on_two` starts this file under `accelerate launch` once for all sources, since each start costs two imports of torch.
Each process makes the trainers of the cases one after another, trains them, trains those that left a `checkpoint-2`
again from there, and leaves what came out in the case's folder.
"""

import hashlib
import importlib.util
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from accelerate.commands.launch import launch_command, launch_command_parser
from conftest import make_model, make_tokenizer


REPOSITORY = Path(__file__).resolve().parent.parent
TESTS = REPOSITORY / "tests"
SOURCES = {path.parent.name: path for path in sorted(TESTS.glob("methods/*/distributed.py"))}
SOURCES |= {"balancing_loss": TESTS / "logprobs" / "test_balancing_loss.py"}
TYPES = {"multi_gpu": "MULTI_CPU", "fsdp2": "FSDP", "zero2": "DEEPSPEED", "zero3": "DEEPSPEED"}
TIMEOUT = 900  # seconds; processes that wait for each other would wait for half an hour
BATCH = 4  # prompts of a step, over all processes
# Metrics that depend on the clock, or (distinct_2) on the samples of one process.
_OWN = ("runtime", "per_second", "time", "seconds/generation", "seconds/reward", "seconds/update", "distinct_2")

Case = Callable[[str, int], Any]


# -------------------------------------------------------------------------------------------------------- the tests


def model_of(folder: str, seed: int = 0) -> str:
    """The directory of a model and its tokenizer, for the case of that folder."""
    return str(Path(folder).parent / f"model-{seed}")


def _save_models(folder: Path) -> None:
    tokenizer = make_tokenizer()
    for seed in (0, 1):
        path = model_of(str(folder / "case"), seed)
        make_model(len(tokenizer), seed=seed).save_pretrained(path)
        tokenizer.save_pretrained(path)


def module_of(source: str) -> Any:
    """The module of a source, which is imported as a file: test folders are no packages."""
    spec = importlib.util.spec_from_file_location(f"two_processes_of_{source}", SOURCES[source])
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def on_one(cases: dict[str, Case], folder: Path) -> dict[str, Any]:
    """Results of the cases on one process, by name; they run in this process."""
    _save_models(folder)
    return {name: _train(make, folder / name, BATCH) for name, make in cases.items()}


def on_two(kind: str, folder: Path) -> dict[str, dict[str, Any]]:
    """Results of the cases of all sources on two processes, by source, with a config of `recipes/accelerate`."""
    if kind.startswith("zero"):
        pytest.importorskip("deepspeed", reason="DeepSpeed is not installed: pip install 'trl-ext[deepspeed]'")
    config = REPOSITORY / "recipes" / "accelerate" / f"{kind}.yaml"
    # `--num_processes` and full precision for the comparison; everything else is the file's.
    launch = ["--config_file", str(config), "--num_processes=2", "--mixed_precision=no", "--main_process_port=0"]
    names = {source: module_of(source).cases_of(kind) for source in SOURCES}
    for source in SOURCES:
        _save_models(folder / source)
    path = f"{REPOSITORY / 'tests'}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    # Launched from here, since importing torch once more only to launch would take seconds; the launcher would leave
    # handlers of signals here.
    environment = {"PYTHONPATH": path, "DS_ACCELERATOR": "cpu", "TORCHELASTIC_SIGNALS_TO_HANDLE": "SIGQUIT"}
    with patch.dict(os.environ, environment):
        launch_command(launch_command_parser().parse_args([*launch, __file__, kind, str(folder)]))
    return {source: {name: _result(folder / source / name) for name in names[source]} for source in SOURCES}


def assert_equal(one: dict[str, Any], two: dict[str, Any], kind: str) -> None:
    """Two processes of this kind computed what one did, and left the same files."""
    assert (one["processes"], one["type"]) == (1, "NO")
    assert (two["processes"], two["type"]) == (2, TYPES[kind])
    assert len(one["logs"]) == len(two["logs"]) > 2
    for a, b in zip([*one["logs"], one["metrics"]], [*two["logs"], two["metrics"]], strict=True):
        assert a.keys() == b.keys()
        wrong = {n: (a[n], b[n]) for n in a if b[n] != pytest.approx(a[n], abs=1e-4, rel=1e-4, nan_ok=True)}
        assert not wrong, f"on one process and on two: {wrong}"
    _assert_close(two["weights"], one["weights"])
    if two["resumed"]:
        _assert_close(two["resumed"], two["weights"])


def _assert_close(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=1e-4, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


# ----------------------------------------------------------------------------------------------------- the processes


def _train(make: Case, folder: Path, batch_size: int) -> dict[str, Any]:
    """Train and evaluate the trainer that `make` returns. Returns its results."""
    from accelerate.utils import gather_object

    trainer = make(str(folder), batch_size)
    trainer.train()
    metrics = trainer.evaluate() if trainer.eval_dataset is not None else {}
    trainer.save_model(str(folder / "final"))
    checkpoint = folder / "checkpoint-2"
    if checkpoint.is_dir():
        again = make(str(folder), batch_size)
        again.train(resume_from_checkpoint=str(checkpoint))
        again.save_model(str(folder / "resumed"))
    trainer.accelerator.wait_for_everyone()
    if trainer.accelerator.distributed_type.value in ("NO", "MULTI_CPU"):
        state = trainer.accelerator.unwrap_model(trainer.model).state_dict()
        digest = hashlib.sha256(
            b"".join(value.flatten().view(torch.uint8).numpy().tobytes() for value in state.values())
        ).hexdigest()
        assert len(set(gather_object([digest]))) == 1, "the processes have different weights"
    if trainer.is_world_process_zero():
        logs = [_numbers(log) for log in trainer.state.log_history if "loss" in log]
        result = {
            "processes": trainer.accelerator.num_processes,
            "type": trainer.accelerator.distributed_type.value,
            "logs": logs,
            "metrics": _numbers(metrics),
        }
        (folder / "result.json").write_text(json.dumps(result))
    return _result(folder) if trainer.is_world_process_zero() else {}


def _numbers(log: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in log.items() if not name.endswith(_OWN)}


def _result(folder: Path) -> dict[str, Any]:
    result = json.loads((folder / "result.json").read_text())
    return {**result, "weights": _saved(folder / "final"), "resumed": _saved(folder / "resumed")}


def _saved(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    files = sorted(folder.rglob("*.safetensors"))
    return {f"{f.relative_to(folder)}: {name}": value for f in files for name, value in load_file(f).items()}


def use_fsdp_on_cpu() -> None:
    """accelerate enables FSDP on accelerators only, and otherwise trains with DDP without a message."""
    from accelerate import state
    from accelerate.utils import DistributedType

    original = state.AcceleratorState.__init__

    def init(self: Any, *args: Any, fsdp_plugin: Any = None, **kwargs: Any) -> None:
        original(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if fsdp_plugin is not None and self.distributed_type == DistributedType.MULTI_CPU:
            if self._mixed_precision != "no":
                fsdp_plugin.set_mixed_precision(self._mixed_precision)
            self.distributed_type, self.fsdp_plugin = DistributedType.FSDP, fsdp_plugin
            state.PartialState._shared_state["distributed_type"] = DistributedType.FSDP

    state.AcceleratorState.__init__ = init


def main(kind: str, folder: str) -> None:
    signal.alarm(TIMEOUT)
    if kind == "fsdp2":
        use_fsdp_on_cpu()
    elif kind.startswith("zero"):
        import deepspeed

        # On a GPU transformers does this in time; without one, models would be divided among one process.
        deepspeed.init_distributed(dist_backend="gloo")
    for source in SOURCES:
        module = module_of(source)
        known = {**module.CASES, **getattr(module, "TWO_ONLY", {})}
        for name in module.cases_of(kind):
            print(f"{source}: {name}", flush=True)
            _train(known[name], Path(folder) / source / name, BATCH // 2)
    # Not through the interpreter's end, where gloo may wait for the GIL: see benchmarks/speed/process_steps.py.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
