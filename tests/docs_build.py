# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""The hooks of the documentation site (docs/build), which tests import without mkdocs."""

import functools
import importlib.util
from pathlib import Path
from types import ModuleType

from conftest import REPOSITORY


@functools.cache
def hook(name: str) -> ModuleType:
    """The module `docs/build/<name>.py`."""
    spec = importlib.util.spec_from_file_location(f"docs_build_{name}", REPOSITORY / "docs" / "build" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def made_with_the_site() -> set[Path]:
    """Pages and plots of `docs/` that are made when the site is built. mkdocs checks links to them."""
    plots = {f"assets/losses/{name}.svg" for name in hook("plots").PLOTS}
    return {REPOSITORY / "docs" / name for name in {*hook("reference").targets(), "reference/messages.md", *plots}}
