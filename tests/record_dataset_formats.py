# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Writes `docs/dataset_formats.md` from the rows in `dataset_forms.py`: `python tests/record_dataset_formats.py`."""

from pathlib import Path

from dataset_forms import AS_THEY_ARE, CONVERTED, REFUSED, Form

from trl_ext.data.formats.registry import FORMATS


PAGE = Path(__file__).parents[1] / "docs" / "dataset_formats.md"

_TEXT = """\
# Forms of data

<!-- Written by `python tests/record_dataset_formats.py` from `tests/dataset_forms.py`, which is tested. -->

Every trainer and every command reads the forms below, and converts them to one schema:

```
{{"prompt": text or messages, "completions": [text or messages, ...], "scores": [number, ...]}}
```

A form is recognised by its columns and its first rows; one line of the log says which one it is. Two settings change
that, in Python, in YAML and on the command line:

- `columns` names columns: `columns={{"prompt": "question"}}`, `columns: {{prompt: question}}`,
  `--columns prompt=question`.
- `dataset_format` names the form.

`trl-ext convert --dataset_name DATA --output_file rows.parquet` shows three converted rows and writes all of them.
In Python that is `trl_ext.to_scored_rows(dataset, "train")`.

Texts stay texts and messages stay messages; a chat template is used for messages only. Answers that are missing or
have no score are left out, and so are rows without any other. Forms in which several rows become one ({grouped})
cannot be streamed: write them to a file first.

## Taken as they are

{as_they_are}

## Converted

{converted}

## Refused

{refused}
"""


def page() -> str:
    """The text of the page."""
    return _TEXT.format(
        grouped=", ".join(f"`{each.name}`" for each in FORMATS if each.group is not None),
        as_they_are=_table(AS_THEY_ARE),
        converted=_table(CONVERTED),
        refused=_table(REFUSED, named=False),
    )


def _table(forms: list[Form], named: bool = True) -> str:
    head = ["data", "columns", *(["`dataset_format`"] if named else []), "how" if named else "what to do"]
    lines = [head, ["---"] * len(head)]
    for form in forms:
        columns = ", ".join(f"`{column}`" for column in form.rows[0])
        lines.append([form.found_in, columns, *([f"`{form.name}`"] if named else []), form.note])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


if __name__ == "__main__":
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page(), encoding="utf-8")
