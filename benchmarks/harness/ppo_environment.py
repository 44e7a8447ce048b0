# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
An environment with the last TRL that has PPO, beside the one that the package is installed in.

TRL took PPO out after 1.12.0. All that this version needs is here already in the versions that are measured, so the
environment is an empty one that sees the packages of this one, with TRL alone on top:

    python -m venv outputs/ppo-trl-1.12.0
    echo <site-packages of this Python> > outputs/ppo-trl-1.12.0/lib/python3.11/site-packages/below.pth
    outputs/ppo-trl-1.12.0/bin/python -m pip install --no-deps trl==1.12.0

It is made when first asked for, and needs a package index then. Tests make none.
"""

import fcntl
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from .results import ROOT


VERSION = "1.12.0"
PPO = "TRL's PPO (trl 1.12)"
FOLDER = ROOT / "outputs" / f"ppo-trl-{VERSION}"
_CHECK = f"import trl; from trl.experimental.ppo import PPOTrainer; assert trl.__version__ == {VERSION!r}, trl"


class Unavailable(RuntimeError):
    """There is no such environment and none could be made: what needs it is skipped."""


def python(folder: Path = FOLDER) -> str:
    """
    The Python of the environment, made on first use.

    Args:
        folder (`Path`): Where the environment is or comes to be.

    Raises:
        [`Unavailable`]: It could not be made; the message has the reason, and how to make it by hand.
    """
    binary, ready = folder / "bin" / "python", folder / "ready"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / f"{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # arms run side by side, in threads or processes
        if not ready.exists():
            shutil.rmtree(folder, ignore_errors=True)
            _run([sys.executable, "-m", "venv", str(folder)], folder)
            [packages] = folder.glob("lib/python*/site-packages")
            here = dict.fromkeys(sysconfig.get_path(name) for name in ("purelib", "platlib"))
            (packages / "below.pth").write_text("".join(f"{path}\n" for path in here), encoding="utf-8")
            pip = [str(binary), "-m", "pip", "install", "--no-deps", "--disable-pip-version-check"]
            _run([*pip, f"trl=={VERSION}"], folder)
            _run([str(binary), "-c", _CHECK], folder)
            ready.write_text(VERSION + "\n", encoding="utf-8")
    return str(binary)


def _run(command: list[str], folder: Path) -> None:
    found = subprocess.run(command, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if found.returncode:
        output = (found.stderr or found.stdout).strip().splitlines()
        raise Unavailable(
            f"TRL's PPO needs an environment with trl {VERSION}, which could not be made in {folder}: "
            f"`{' '.join(command[1:4])} ...` says {output[-1] if output else found.returncode!r}. "
            "Make it where there is a package index, by the commands in benchmarks/harness/ppo_environment.py."
        )
