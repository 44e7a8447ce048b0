# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0
"""
Runs of which the n-th operation on a file fails, or in the middle of which the process is killed.

`file_faults.c` is compiled and preloaded into a server (this file as a script), which imports everything once and
forks a child a run. An operation is a file opened for writing, a write, fsync, truncation, renaming or removal, or a
new folder, below the folder that the run writes to, whichever library does it. (The renaming of the temporary files of
safetensors is the one exception: it asks the kernel without the C library. Their writes are seen.)

A failing write has written half of its bytes. A disk that is full stays full until the run ends; the other errors
occur once.
"""

import ctypes
import json
import os
import shutil
import subprocess
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


FAULTS = {"full": 1, "broken": 2, "denied": 3, "killed": 4}  # ENOSPC, EIO, EACCES, SIGKILL
SOURCE = Path(__file__).with_suffix(".c")
COMPILER = shutil.which("cc")
WORKS = sys.platform == "linux" and COMPILER is not None

STEPS, SAVE_STEPS = 20, 12
SMALL = {"num_hidden_layers": 1, "hidden_size": 32, "intermediate_size": 32}
# Saved after step 12: within a round of each method, and for VAS between two updates on a batch.
TRAININGS: dict[str, dict[str, Any]] = {
    "rrhf": {"resample_steps": 8},
    "vas": {
        "resample_steps": 0,
        "num_epochs_per_batch": 2,
        "normalize_rewards": True,
        "log_completions": True,
        "num_completions_to_print": 0,
    },
    "psle": {"resample_steps": 5, "num_iterations": 4, "save_total_limit": 1},
    "proxy_rlhf": {"num_ppo_epochs": 5},
}
SAMPLINGS = ("sample.jsonl", "sample.parquet")


@dataclass
class Outcome:
    """
    How a run ended.

    Args:
        status (`int`): Its exit status; negative for the signal that ended it.
        text (`str`): What it printed, with the error.
        saved (`int`): What it had reported as saved: the step of a training, the rows of a sampling.
    """

    status: int
    text: str
    saved: int


class FaultServer:
    """
    Starts runs; a context manager.

    Args:
        folder (`Path`): For the compiled library, the models, and what the runs print.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __enter__(self) -> "FaultServer":
        library = self.folder / "file_faults.so"
        assert COMPILER is not None
        subprocess.run([COMPILER, "-O1", "-fPIC", "-shared", "-o", library, SOURCE, "-ldl", "-lpthread"], check=True)
        self.process = subprocess.Popen(
            [sys.executable, __file__, self.folder],
            env={**os.environ, "LD_PRELOAD": str(library), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        return self

    def __exit__(self, *_: Any) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()  # which ends it
        self.process.wait(timeout=600)

    def run(self, job: str, output: Path, number: int = 0, fault: str = "full") -> Outcome:
        """
        A training or sampling from what is in a folder.

        Args:
            job (`str`): A method of `TRAININGS`, or one of `SAMPLINGS`.
            output (`Path`): The folder.
            number (`int`, *optional*, defaults to `0`): The operation to fail, from 1. `0`: none.
            fault (`str`, *optional*, defaults to `"full"`): How, of `FAULTS`.
        """
        assert self.process.stdin is not None and self.process.stdout is not None
        task = {"job": job, "output": str(output), "number": number, "fault": fault}
        self.process.stdin.write(json.dumps(task) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        assert answer, "the server has ended"
        reports = (self.folder / "saved").read_text().split()
        return Outcome(
            int(answer), (self.folder / "log").read_text(errors="replace"), int(reports[-1]) if reports else 0
        )

    def operations(self) -> list[str]:
        """The operations of the last run, as `write PATH`."""
        return (self.folder / "operations").read_text().splitlines()


# ------------------------------------------------------------------------------------------------------- the server


def _train(method: str, output: Path) -> int:
    from tiny_trainers import make_trainer

    from trl_ext.training.checkpoints import last_checkpoint

    settings: dict[str, Any] = {"max_steps": STEPS, "save_strategy": "steps", "save_steps": SAVE_STEPS}
    settings |= {"logging_steps": 4, "max_completion_length": 3, "use_cpu": True, "bf16": False}
    settings["model_changes"] = SMALL
    trainer = make_trainer(method, output, **settings, **TRAININGS[method])
    trainer.train(resume_from_checkpoint=last_checkpoint(output))
    trainer.save_model()
    return 0


def _sample(name: str, output: Path, models: Path) -> int:
    from trl_ext.cli.main import main

    words = ["sample", "--model_name_or_path", models / "model", "--dataset_name", models / "rows.jsonl"]
    words += ["--reward_funcs", "conftest:letter_reward", "--num_generations", "2", "--max_completion_length", "4"]
    words += ["--generation_batch_size", "8", "--output_file", output / name]
    return main([str(word) for word in words])


def _make_models(folder: Path) -> None:
    from conftest import make_model, make_tokenizer
    from tiny_trainers import PROMPTS

    tokenizer = make_tokenizer()
    make_model(len(tokenizer), **SMALL).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, PROMPTS)))


def _report_what_is_saved(reports: Path) -> None:
    """From now on, a line of `reports` for each checkpoint and batch of rows, once it is written."""
    from trl_ext.data.resumable_file import ResumableFile
    from trl_ext.training.trainer import ExtTrainer

    descriptor = os.open(reports, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND)

    def watch(cls: type, attribute: str, number: Callable[[Any], int]) -> None:
        inner = getattr(cls, attribute)

        def outer(self: Any, *args: Any, **kwargs: Any) -> Any:
            result = inner(self, *args, **kwargs)
            os.write(descriptor, f"{number(self)}\n".encode())
            return result

        setattr(cls, attribute, outer)

    watch(ExtTrainer, "_save_checkpoint", lambda trainer: trainer.state.global_step)
    watch(ResumableFile, "append", lambda file: file.rows)


def _run(task: dict[str, Any], folder: Path) -> None:
    log = os.open(folder / "log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)  # the tasks are the server's
    _report_what_is_saved(folder / "saved")
    output = Path(task["output"])
    status = 1
    try:
        arm = ctypes.CDLL(None).faults_arm
        names = os.fsencode(folder / "operations")
        arm(os.fsencode(output), ctypes.c_long(task["number"]), FAULTS[task["fault"]], names)
        job = task["job"]
        status = _train(job, output) if job in TRAININGS else _sample(job, output, folder)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _serve(folder: Path) -> None:
    import gc

    import datasets  # noqa: F401
    import pandas  # noqa: F401
    from tiny_trainers import make_trainer

    import trl_ext.cli.sample  # noqa: F401

    _make_models(folder)
    for method in TRAININGS:  # imports what it needs
        make_trainer(method, folder / "imports", use_cpu=True, bf16=False)
    gc.freeze()
    for line in sys.stdin:
        child = os.fork()
        if not child:
            _run(json.loads(line), folder)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    _serve(Path(sys.argv[1]))
