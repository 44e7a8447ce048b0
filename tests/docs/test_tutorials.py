# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""The tutorials show what their recorded evaluations hold."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest
from conftest import REPOSITORY


def load() -> Any:
    spec = importlib.util.spec_from_file_location("tutorials", REPOSITORY / "docs" / "build" / "tutorials.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


TUTORIALS = load()


@pytest.mark.parametrize("name", TUTORIALS.NAMES)
def test_a_page_is_what_the_script_writes(name: str) -> None:
    assert TUTORIALS.page(name) == (TUTORIALS.TUTORIALS / f"{name}.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", TUTORIALS.PLOTS)
def test_a_plot_is_what_the_script_plots(name: str, tmp_path: Path) -> None:
    """Up to what fonts and versions of matplotlib change."""
    from matplotlib.testing.compare import compare_images

    for plotted in TUTORIALS.plot(name, tmp_path):
        assert compare_images(str(TUTORIALS.TUTORIALS / plotted.name), str(plotted), tol=10) is None


@pytest.mark.parametrize("name", TUTORIALS.NAMES)
def test_an_evaluation_has_five_prompts_and_no_path_of_a_machine(name: str) -> None:
    report = TUTORIALS.read(name)
    assert len(report["completions"]) == 5 and report["settings"]["num_prompts"] == 40
    paths = [report["settings"]["output_file"], report["settings"]["dataset_name"], *TUTORIALS.NAMES[name]]
    assert not any(path.startswith("/") for path in paths)
