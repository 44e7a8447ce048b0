# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0
"""
The notebooks run on a few prompts, and what is stored of each is its source with outputs.

They run in this process, which has imported what they import; `.ci/notebooks` runs them whole, in kernels.
"""

import json
import runpy
from pathlib import Path
from typing import Any

import pytest
from conftest import REPOSITORY
from matplotlib import pyplot


SOURCES = sorted((REPOSITORY / "docs" / "notebooks").glob("*.py"))


def named(path: Path) -> str:
    return path.stem


def test_every_method_has_one() -> None:
    assert {path.stem for path in SOURCES} == {"rrhf", "vas", "proxy_rlhf", "psle", "frontier"}


@pytest.mark.parametrize("source", SOURCES, ids=named)
def test_a_notebook_runs(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pyplot.switch_backend("agg")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TRL_EXT_NOTEBOOK_PROMPTS", "2")
    values = runpy.run_path(str(source))
    pyplot.close("all")
    if source.stem == "vas":
        assert "background: rgba(" in values["Coloured"](*values["TURNS"])._repr_html_()


def text_of(chunk: str) -> str:
    """The text of a cell in jupytext's percent format, what follows `# %%`."""
    if not chunk.startswith(" [markdown]"):
        return chunk.strip()
    lines = chunk.strip().splitlines()[1:]
    return "\n".join(line.removeprefix("#").removeprefix(" ") for line in lines)


@pytest.mark.parametrize("source", SOURCES, ids=named)
def test_what_is_stored_is_the_source_with_outputs(source: Path) -> None:
    _, *chunks = source.read_text().split("\n# %%")
    stored: list[dict[str, Any]] = json.loads(source.with_suffix(".ipynb").read_text())["cells"]
    texts = [text_of(chunk) for chunk in chunks]
    assert ["".join(cell["source"]) for cell in stored] == texts, (
        f"run `.ci/notebooks {source.stem}` to store it again"
    )
    cells = [cell for cell in stored if cell["cell_type"] == "code"]
    assert sum(bool(cell["outputs"]) for cell in cells) >= len(cells) - 2
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert not any(output["output_type"] == "error" for output in outputs)
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert not any("<progress" in "".join(output.get("data", {}).get("text/html", [])) for output in outputs)
