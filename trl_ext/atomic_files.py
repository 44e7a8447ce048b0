# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Atomic file writes: write to a temporary file, then rename."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    import torch


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """
    Context that yields a temporary file to write instead of `path`, and renames it to `path` at the end.

    The temporary file has the suffix `.part` and is flushed to the disk before the renaming. A process that is killed
    may leave it behind; the next write overwrites it.

    Args:
        path (`Path`): File to replace or create. Its folder is created if it does not exist.

    Raises:
        `OSError`: The file cannot be written. `path` is then unchanged.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    try:
        yield part
        descriptor = os.open(part, os.O_RDWR)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Write text to a file atomically."""
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8")


def write_tensors(path: Path, tensors: "Mapping[str, torch.Tensor]") -> None:
    """Write tensors to a safetensors file atomically."""
    from safetensors.torch import save_file

    with replacing(path) as part:
        save_file({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, part)


def write_same(path: Path, other: Path) -> bool:
    """
    Make `path` a second name of the file `other`, which takes no space. Files written by this module are never changed
    in place, so that each name keeps its content.

    Args:
        path (`Path`): File to replace or create.
        other (`Path`): A file that this module wrote.

    Returns:
        `bool`: Whether it was done. Some file systems have no such names, and `other` may be gone: `path` is then
            unchanged.
    """
    part = path.with_name(f"{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.unlink(missing_ok=True)
        os.link(other, part)
        os.replace(part, path)
    except OSError:
        return False
    finally:
        part.unlink(missing_ok=True)  # a renaming to another name of the same file does nothing
    return True
