# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Writes `docs/dataset_formats.md` from the rows in `dataset_forms.py`: `python tests/record_dataset_formats.py`."""

from collections.abc import Iterable, Sequence
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

Texts stay texts and messages stay messages; where one part of a row is messages, the other becomes messages. A chat
template is used for messages only. An answer that is missing or has no score is an error in the row schema and in
pairs; in other forms it is left out, and so are rows without any other. Forms in which several rows become one
({grouped}) cannot be streamed: write them to a file first.

## Taken as they are

{as_they_are}

## Converted

{converted}

## Refused

{refused}

## Written for other trainers

`trl-ext sample --format NAME` writes scored completions as another trainer reads them; `trl-ext convert --format NAME`
makes them of any dataset with completions and scores (in Python `trl_ext.from_scored_rows(dataset, NAME)`). Sampling
takes longer than converting: if several forms or settings are to be compared, sample without `--format` and convert.

{exported}

- Columns that belong to the prompt are kept. The difference of a pair's scores is not called `margin`, which TRL's
  RewardTrainer subtracts in its loss.
- Completions with equal scores are no pair; with `kto`, a prompt whose scores are all equal has neither good nor bad
  ones, unless `score_threshold` is a number. Such prompts, and single completions, are left out and counted.
- `score_threshold 0` fits rewards that are 1 or 0. The scores of a reward model have no zero: keep `mean` there.
- TRL adds an end-of-sequence token to every completion, also to those that were cut off at `max_completion_length`:
  they are counted, and `ended_only` leaves them out.
"""

_EXPORTED = [
    ("`--format`", "columns", "read by", "settings"),
    (
        "`pairs` or `dpo`",
        "`prompt`, `chosen`, `rejected`; `score_chosen`, `score_rejected`, `score_margin`",
        "DPOTrainer, RewardTrainer",
        "`pairing`: `best_worst` (one pair of a prompt), `best_others` (the best with each), `all`; `min_margin`",
    ),
    (
        "`kto`",
        "`prompt`, `completion`, `label`; `score`",
        "KTOTrainer",
        "the label is true above `score_threshold`: a number, `mean` (default) or `median` of the prompt's scores",
    ),
    (
        "`sft`",
        "`prompt`, `completion`; `score`",
        "SFTTrainer",
        "`keep`: the `best` completion (default), those above the `threshold`, or `random` ones; `keep_per_prompt`; "
        "all if there are no scores",
    ),
]


def page() -> str:
    """The text of the page."""
    return _TEXT.format(
        grouped=", ".join(f"`{each.name}`" for each in FORMATS if each.group is not None),
        as_they_are=_table(AS_THEY_ARE),
        converted=_table(CONVERTED),
        refused=_table(REFUSED, named=False),
        exported=_lines([_EXPORTED[0], ["---"] * 4, *_EXPORTED[1:]]),
    )


def _table(forms: list[Form], named: bool = True) -> str:
    head = ["data", "columns", *(["`dataset_format`"] if named else []), "how" if named else "what to do"]
    lines = [head, ["---"] * len(head)]
    for form in forms:
        columns = ", ".join(f"`{column}`" for column in form.rows[0])
        lines.append([form.found_in, columns, *([f"`{form.name}`"] if named else []), form.note])
    return _lines(lines)


def _lines(rows: Iterable[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows)


if __name__ == "__main__":
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page(), encoding="utf-8")
