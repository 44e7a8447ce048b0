# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
`trl-ext convert`: a dataset in any known form as a file of the row schema or of another trainer's rows.

    trl-ext convert --dataset_name berkeley-nest/Nectar --output_file nectar.parquet
    trl-ext convert --dataset_name mine.jsonl --columns prompt=question,completions=candidates,scores=ratings
    trl-ext convert --dataset_name scored.jsonl --format dpo --min_margin 0.5 --output_file pairs.jsonl

Trainers and commands read the same forms themselves. The command shows what they would read: it checks all rows as
they do, prints three of them, and writes all of them if there is an `output_file`. `format` makes rows for TRL's
trainers of scored completions, as `trl-ext sample --format` does.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datasets import Dataset

from trl_ext.atomic_files import replacing
from trl_ext.data.exports import EXPORTS, ExportSettings, describe_export, export_rows
from trl_ext.data.load import load_dataset, short_name
from trl_ext.data.schema import check_row, is_conversational
from trl_ext.data.scored_rows import recognise, to_scored_rows
from trl_ext.progress import library_progress
from trl_ext.validation import check_at_least

from .arguments import DatasetArguments
from .parser import Parser


_SHOWN, _WIDTH = 3, 400  # rows that are printed, and letters of each of their values


@dataclass
class ConvertArguments(ExportSettings, DatasetArguments):
    """What to convert, and where to write it."""

    dataset_train_split: str = field(default="train", metadata={"help": "Split to convert."})
    output_file: str | None = field(
        default=None, metadata={"help": "File for the rows: .jsonl or .parquet. Without it, they are only shown."}
    )
    overwrite_output: bool = field(default=False, metadata={"help": "Whether to replace the file if it exists."})

    def __post_init__(self) -> None:
        check_at_least("max_num_prompts", self.max_num_prompts, 0)
        self.check_export()
        if self.output_file is None:
            return
        path = Path(self.output_file).expanduser()
        if path.suffix not in (".jsonl", ".parquet"):
            raise ValueError(f"output_file must end in .jsonl or .parquet, got {self.output_file!r}.")
        if path.exists() and not self.overwrite_output:
            raise ValueError(f"output_file {self.output_file!r} exists: pass --overwrite_output to replace it.")


def run(args: ConvertArguments) -> int:
    """
    Convert, show and write.

    Returns:
        `int`: 0.
    """
    name = str(args.dataset_name)
    dataset, shown = load_dataset(name, args.dataset_config, args.dataset_train_split), short_name(name)
    dataset, found = recognise(dataset, shown, columns=args.columns, dataset_format=args.dataset_format)
    rows: Any = to_scored_rows(dataset, shown, dataset_format=found.name, limit=args.max_num_prompts)
    _check(rows, shown)
    contents = f"{_counted(len(rows), 'row')} with {_contents(rows[0])}"
    if args.format != "scored":
        made, counts = export_rows(rows, args)
        rows = Dataset.from_list(made)
        made_of = f"{_counted(len(rows), 'row')} for {EXPORTS[args.format].trainers}"
        contents = ", ".join(filter(None, [f"{contents}\n{made_of}", describe_export(counts)]))
    for row in rows.select(range(min(_SHOWN, len(rows)))):
        print(
            json.dumps(
                {key: _shortened(value) for key, value in row.items()}, ensure_ascii=False, default=str, indent=1
            )
        )
    print(f"read as `{found.name}`: {found.found_in}")
    print(contents)
    if args.output_file is not None:
        _write(rows, Path(args.output_file).expanduser())
        print(f"wrote {args.output_file}")
    return 0


def _check(rows: Dataset, name: str) -> None:
    """
    Check every row, as training and sampling do: what is shown here must work there.

    Raises:
        `DataError`: A row cannot be used. The message names it.
    """
    conversational, has_scores = is_conversational(rows[0]), "scores" in rows.column_names
    for index, row in enumerate(rows):
        check_row(row, index, conversational, name, needs_scores=has_scores)


def _contents(row: dict[str, Any]) -> str:
    if "completions" not in row:
        return "prompts only: completions are generated in training, or by `trl-ext sample`"
    scores = "scores" if "scores" in row else "no scores (`trl-ext sample --dataset_completions` adds them)"
    return f"prompts, {_counted(len(row['completions']), 'completion')} in the first row, and {scores}"


def _counted(number: int, one: str) -> str:
    return f"{number} {one}{'' if number == 1 else 's'}"


def _shortened(value: Any) -> Any:
    """A value whose texts are cut in their middle, so that beginning and end can be read."""
    if isinstance(value, str) and len(value) > _WIDTH:
        return f"{value[: _WIDTH // 2]} [... {len(value) - _WIDTH} letters ...] {value[-_WIDTH // 2 :]}"
    if isinstance(value, list):
        return [_shortened(item) for item in value[:8]] + ([f"... {len(value) - 8} more"] if len(value) > 8 else [])
    return {key: _shortened(item) for key, item in value.items()} if isinstance(value, dict) else value


def _write(rows: Dataset, path: Path) -> None:
    with library_progress(f"writing {path.name}"), replacing(path) as part:
        if path.suffix == ".parquet":
            rows.to_parquet(part)
        else:
            rows.to_json(part, lines=True, force_ascii=False)


def make_parser(prog: str = "trl-ext convert") -> Parser:
    """The parser of the command's flags and YAML file."""
    return Parser(
        [ConvertArguments],
        prog=prog,
        description="Convert a dataset in any known form to the rows that training takes, or to those of TRL's "
        "trainers, and show three of them.",
        epilog="The forms are listed in docs/dataset_formats.md.",
    )


def main(argv: list[str]) -> int:
    """
    `trl-ext convert`.

    Returns:
        `int`: See [`run`].

    Raises:
        `ValueError` or `OSError`: Settings or data that cannot work.
    """
    return run(*make_parser().parse_args_and_config(argv))
