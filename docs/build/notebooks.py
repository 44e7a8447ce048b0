# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
Runs the notebooks of `docs/notebooks/` from their sources, and stores them with their outputs.

The source of a notebook is the Python file beside it, in jupytext's percent format: a cell begins with `# %%`. Each
notebook runs in a kernel of its own, in an empty folder. Progress bars and what libraries write to stderr (warnings)
are not kept: they are of the moment, and a reader of a stored notebook cannot tell whose machine took the time.

    python docs/build/notebooks.py          # all of them
    python docs/build/notebooks.py rrhf     # one
"""

import re
import sys
import tempfile
import time
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient


FOLDER = Path(__file__).resolve().parents[1] / "notebooks"
SECONDS = 600  # for a cell
BAR = re.compile(r"\s*<div>\s*<progress .*?</progress>.*?</div>\s*", flags=re.DOTALL)
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def made(source: Path) -> nbformat.NotebookNode:
    """The notebook of a source, without outputs; the licence header stays in the source."""
    notebook = jupytext.read(source)
    notebook.cells = [cell for cell in notebook.cells if not cell.source.startswith("# Copyright")]
    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"{source.stem}-{number}"  # not random, so that a new run changes outputs only
    notebook.metadata = dict(METADATA)
    return notebook


def without_bar(output: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """An output without the progress bar that transformers puts above the table of losses."""
    if "text/html" in output.get("data", {}):
        output.data["text/html"] = BAR.sub("", output.data["text/html"])
    return output


def run(source: Path) -> None:
    """Run a notebook and write it beside its source."""
    notebook = made(source)
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        NotebookClient(notebook, timeout=SECONDS, resources={"metadata": {"path": folder}}).execute()
    notebook.metadata = dict(METADATA)  # without versions and times, which differ from run to run
    for cell in notebook.cells:
        cell.metadata = {}
        if cell.cell_type == "code":
            cell.outputs = [without_bar(output) for output in cell.outputs if output.get("name") != "stderr"]
    nbformat.write(notebook, source.with_suffix(".ipynb"))
    print(f"{source.stem}: {time.monotonic() - began:.0f} s", flush=True)


if __name__ == "__main__":
    for path in [FOLDER / f"{name}.py" for name in sys.argv[1:]] or sorted(FOLDER.glob("*.py")):
        run(path)
