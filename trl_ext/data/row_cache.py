# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
Keeps `datasets` from returning rows that other code has made.

`datasets` stores the result of `map` and `filter` on disk under a fingerprint of the function. In that, a function of
an installed package counts by its name: after an update, rows of the older version would be used.
"""

import functools
import hashlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trl_ext


def this_version(function: Callable[..., Any]) -> Callable[..., Any]:
    """
    A function for `map` or `filter` whose cached results are used only with the code that made them: the version of
    this package, everything in this folder, and the file of the function. Its arguments (tokenizer, chat template,
    settings) are in the fingerprint of `datasets` already.

    Args:
        function (`Callable`): A function of a module, or a `partial` of one. A function inside another is hashed by
            `datasets` with all code that it reaches, which takes longer than to tokenize a thousand rows.
    """
    return _Versioned(function, f"{trl_ext.__version__} {_digest(_source(function))}")


@dataclass(frozen=True)
class _Versioned:
    function: Callable[..., Any]
    code: str

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs)


def _source(function: Callable[..., Any]) -> str:
    if isinstance(function, functools.partial):
        return _source(function.func)
    try:
        return inspect.getsourcefile(function) or ""
    except TypeError:  # a callable object
        return ""


@functools.cache
def _digest(source: str) -> str:
    """A hash of the Python files in this folder and below it, and of `source`."""
    files = {*Path(__file__).parent.rglob("*.py"), *([Path(source)] if source else [])}
    digest = hashlib.sha256()
    for path in sorted(files):
        if path.is_file():
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]
