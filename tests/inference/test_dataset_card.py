# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""What the card of a dataset says about columns and prompts; `tests/cli/test_sample.py` runs its code."""

import json
from types import SimpleNamespace

import pytest

from trl_ext.data.exports import EXPORTS, ExportSettings, export_rows
from trl_ext.inference.dataset_card import dataset_card
from trl_ext.settings_file import RunSettings


ROW = {"prompt": "a", "completions": ["b", "c"], "scores": [1.0, 0.0], "ended": [True, True], "answer": "b"}


@pytest.mark.parametrize("form", EXPORTS)
def test_columns_of_every_form_have_a_meaning(form, tmp_path):
    """All but `answer` are made here; prompts of the command line have no dataset that a card could name."""
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(export_rows([ROW], ExportSettings(form))[0][0]))
    file = SimpleNamespace(path=path, rows=1, totals={})
    text = dataset_card(file, RunSettings({}), dataset=None, models=["org/model"], rewards=[])
    [other] = [line for line in text.splitlines() if "a column of the prompts' dataset" in line]
    assert other.startswith("| `answer` |")
    assert "for prompts that were given one by one, without scores" in text and "None" not in text
