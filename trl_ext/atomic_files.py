# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Files that are there whole or not at all, however the process ends that writes them."""

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
    The name of a file to write instead of `path`; at the end of the context it is on the disk and takes its place.

    What an interruption leaves has the suffix `.part`, and is written over by the next attempt.

    Raises:
        `OSError`: It cannot be written. `path` is then as it was.
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
    """Write a text, whole or not at all."""
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8")


def write_tensors(path: Path, tensors: "Mapping[str, torch.Tensor]") -> None:
    """Write tensors to a safetensors file, whole or not at all."""
    from safetensors.torch import save_file

    with replacing(path) as part:
        save_file({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, part)
