# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
The YAML file of `--config`: finds it on a command line, sets its environment variables.

Imports nothing heavy, so that the variables are set before the libraries that read them are imported.
"""

import os
from collections.abc import Sequence
from pathlib import Path

from trl_ext.settings_file import read_config


def split_config(args: Sequence[str]) -> tuple[str, list[str]]:
    """
    Take `--config FILE` (or `--config=FILE`) out of a command line.

    Returns:
        `tuple[str, list[str]]`: The file, `""` if there is none, and the other words.

    Raises:
        `ValueError`: No file follows, or the flag is given twice.
    """
    found: list[str] = []
    rest: list[str] = []
    words = iter(args)
    for word in words:
        flag, has_value, value = word.partition("=")
        if flag == "--config":
            path = value if has_value else next(words, "")
            if not path or path.startswith("--"):
                raise ValueError("--config needs a file, e.g. --config recipe.yaml")
            found.append(path)
        else:
            rest.append(word)
    if len(found) > 1:
        raise ValueError(f"--config was given {len(found)} times ({', '.join(found)}); only one file is read")
    return (found[0] if found else ""), rest


def set_environment(args: Sequence[str]) -> None:
    """
    Set the variables under `env:` in the YAML file of a command line.

    Raises:
        `ValueError`: `env` is not a mapping.
    """
    path, _ = split_config(args)
    variables = read_config(path).get("env") if path else None
    if variables is None:
        return
    if not isinstance(variables, dict):
        raise ValueError(f"{path}: `env` must be a mapping of variables to values, got {variables!r}")
    os.environ.update({str(key): str(value) for key, value in variables.items()})


def recipes_folder() -> Path:
    """The folder of the recipes: in an installed package inside it, in a clone beside it."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "recipes"
    return installed if installed.is_dir() else package.parent / "recipes"
