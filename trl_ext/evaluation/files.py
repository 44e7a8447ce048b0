# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Checks and writes the files of evaluations."""

import json
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

from trl_ext.atomic_files import write_text


def check_writable(path: str | None, flag: str) -> None:
    """
    Check before a long evaluation that its output file can be written.

    This writes a temporary file to the same folder: permissions alone do not show whether a disk is read-only or full.

    Args:
        path (`str`, *optional*): The file. `None` is always valid.
        flag (`str`): Name of the flag, for the error.

    Raises:
        `ValueError`: The folder does not exist or cannot be written to, or `path` is a folder.
    """
    if path is None:
        return
    folder = Path(path).parent
    if not folder.is_dir():
        raise ValueError(f"the folder of --{flag} does not exist: {folder}")
    if Path(path).is_dir():
        raise ValueError(f"--{flag} is a folder, pass a file in it: {path}")
    try:
        with NamedTemporaryFile(dir=folder, prefix=".trl-ext-") as probe:
            probe.write(b"0")
            probe.flush()
    except OSError as error:
        raise ValueError(f"--{flag} cannot be written in {folder} ({error.strerror}): pass another file") from error


def write_json(path: str, data: Any) -> None:
    """
    Write `data` to `path` as JSON, atomically.

    Raises:
        `OSError`: The file cannot be written, for instance because the disk is full.
    """
    write_text(Path(path), without_half_pairs(json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False)) + "\n")


def without_half_pairs(text: str) -> str:
    """A text in which half a surrogate pair, which UTF-8 cannot encode, is a "?". Prompts may contain one."""
    return text.encode("utf-8", errors="replace").decode("utf-8")


def read_report(path: str) -> dict[str, Any]:
    """
    The content of a JSON file of `trl-ext evaluate`.

    Raises:
        `ValueError`: The file has another content.
        `OSError`: The file cannot be read.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no file {path!r}")
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path!r} is not JSON: pass the --output_file of trl-ext evaluate") from error
    if not isinstance(content, dict) or any(content.get(key) is None for key in ("settings", "comparison", "models")):
        raise ValueError(f"{path!r} was not written by trl-ext evaluate, or by an earlier version: evaluate again")
    return content


def short_names(names: list[str]) -> dict[str, str]:
    """
    The last components of paths and ids, as many as are needed to distinguish them.

    For `run/a/last` and `run/b/last` these are `a/last` and `b/last`.
    """
    parts = {name: [part for part in name.split("/") if part] or [name] for name in names}
    for length in range(1, 1 + max(map(len, parts.values()), default=0)):
        short = {name: "/".join(of[-length:]) for name, of in parts.items()}
        if len(set(short.values())) == len(parts):
            return short
    return {name: name for name in names}
