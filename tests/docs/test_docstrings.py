# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Docstrings in TRL's format as the pages of the API show them (docs/build/docstrings.py)."""

import sys
from types import SimpleNamespace

import pytest
from docs_build import hook


@pytest.fixture(scope="module")
def docstrings():
    if "griffe" not in sys.modules:  # of mkdocstrings, which only the site needs
        sys.modules["griffe"] = SimpleNamespace(Extension=object, Object=object)
    return hook("docstrings")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("`str`, [`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]", "str | PreTrainedModel | PeftModel"),
        ("`dict[str, Any]` or `str`, *optional*, defaults to `{}`", "dict[str, Any] | str"),
        ("`list` of [`~trl_ext.Policy`]", "list of Policy"),
        ("`torch.Tensor` of shape `(N, T)`", "torch.Tensor of shape (N, T)"),
    ],
)
def test_types(docstrings, text, shown):
    assert docstrings.shown_type(text) == shown


def test_sections_references_and_notes(docstrings):
    text = docstrings.converted(
        """Evaluates [`Policy`]; `all`: it reads every row.

        Args:
            rows (`list[dict]` or [`~datasets.Dataset`], *optional*):
                The rows, see [`~trl_ext.load_dataset`].

        Returns:
            `dict[str, float]`: The metrics.

        Raises:
            [`~trl_ext.data.schema.DataError`]: No row.

        > [!NOTE]
        > Slow.
        """
    )
    assert "            rows (list[dict] | Dataset):\n" in text
    assert "            dict[str, float]: The metrics." in text and "            DataError: No row." in text
    assert "        !!! note\n            Slow." in text and "`all`: it reads" in text
    assert '<autoref identifier="trl_ext.load_dataset" optional><code>load_dataset</code></autoref>' in text
    assert '<autoref identifier="Policy" optional><code>Policy</code></autoref>;' in text


def test_defaults_of_shared_settings(docstrings):
    assert docstrings.default('setting("top_k")') == "0" and docstrings.default("setting('cuda_graphs')") == "'auto'"
    assert docstrings.default("field(default=1)") == "field(default=1)"
