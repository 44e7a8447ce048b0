# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
The YAML file of `--config`: finds it on a command line, reads it strictly, sets its environment variables.

Imports nothing heavy, so that the variables are set before the libraries that read them are imported.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml


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


def read_config(path: str) -> dict[str, Any]:
    """
    The mapping in a YAML file.

    Raises:
        `ValueError`: The file is not YAML (with line and column), not a mapping, or has a key twice.
        `OSError`: The file cannot be read.
    """
    try:
        with open(path, encoding="utf-8") as file:
            config = yaml.load(file, Loader=_UniqueKeys)
    except FileNotFoundError:
        raise FileNotFoundError(f"config file not found: {path}") from None
    except IsADirectoryError:
        raise IsADirectoryError(f"the config {path} is a folder: name a YAML file in it") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(config, dict):
        kind = "empty" if config is None else f"a {type(config).__name__}"
        raise ValueError(f"{path} must contain a YAML mapping (`key: value` lines), but is {kind}")
    spelt: dict[str, Any] = {}
    for key in config:
        other = spelt.setdefault(str(key).replace("-", "_"), key)
        if other != key:
            raise ValueError(f"{path}: {other!r} and {key!r} are two spellings of one key: remove one of them")
    return config


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


class _UniqueKeys(yaml.SafeLoader):
    """YAML's safe loader, but a key that appears twice in a mapping is an error; YAML keeps the last one."""

    def compose_mapping_node(self, anchor: Any) -> Any:
        # Keys are compared as they are written: later, what `<<` merges stands beside the keys that override it.
        node = super().compose_mapping_node(anchor)
        seen: set[Any] = set()
        for key, _ in node.value:
            if not isinstance(key.value, str) or key.tag == "tag:yaml.org,2002:merge":
                continue
            if (key.tag, key.value) in seen:
                raise yaml.YAMLError(
                    f"the key {key.value!r} appears twice, the second time in line {key.start_mark.line + 1}"
                )
            seen.add((key.tag, key.value))
        return node
