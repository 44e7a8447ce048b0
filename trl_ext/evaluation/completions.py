# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
The Parquet file beside an evaluation's JSON file: every completion with its rewards and log-probabilities.

[`completion_rows`] makes its rows, [`write_completions`] writes them, and [`read_evaluations`] makes evaluations of
both files again, so that other rewards can score the completions. `docs/evaluation.md` lists the columns.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from trl_ext.atomic_files import replacing
from trl_ext.data.completion import Completion

from .evaluate import Evaluation
from .files import read_report, without_half_pairs
from .metrics import finite


# What a policy is, beside its name, as far as it is in the report.
DESCRIPTION = ("method", "series", "extras", "truncation", "start")
EVALUATED, FOR_KL = "evaluated", "kl"  # values of the column `sample`
_LOGPS = {"policy": "logp", "base": "base_logp"}  # names in an Evaluation, and their columns
_SCHEMA = pa.schema(
    [
        ("model", pa.string()),
        ("method", pa.string()),
        ("series", pa.string()),
        ("extras", pa.string()),
        ("row_index", pa.int64()),
        ("completion_index", pa.int64()),
        ("sample", pa.string()),
        ("prompt", pa.string()),
        ("row", pa.string()),
        ("completion", pa.string()),
        ("completion_ids", pa.list_(pa.int64())),
        ("prompt_tokens", pa.int64()),
        ("completion_tokens", pa.int64()),
        ("ended", pa.bool_()),
        ("logp", pa.float64()),
        ("base_logp", pa.float64()),
        ("kl", pa.float64()),
        ("extra", pa.string()),
        ("reward", pa.float64()),
    ]
)


def completions_file(report_file: str) -> Path:
    """The Parquet file that belongs to a JSON file: `evaluation.parquet` to `evaluation.json`."""
    return Path(report_file).with_suffix(".parquet")


def completion_rows(
    prompts: Sequence[Mapping[str, Any]], model: str, described: Mapping[str, Any], found: Evaluation
) -> pa.Table:
    """
    The completions of one model as rows of the file.

    Args:
        prompts (`Sequence[Mapping[str, Any]]`): The dataset's rows.
        model (`str`): Name of the model.
        described (`Mapping[str, Any]`): Its `method`, `series` and `extras`, if it has them.
        found ([`~trl_ext.evaluation.evaluate.Evaluation`]): Its evaluation.
    """
    same = {
        "model": model,
        "method": described.get("method"),
        "series": described.get("series"),
        "extras": _json(described["extras"]) if described.get("extras") else None,
    }
    rows = [
        {**same, **_of_prompt(prompts, index, found), **row}
        for index, row in (*_rows(found, EVALUATED), *_rows(found, FOR_KL))
    ]
    rewards = [(f"reward/{name}", pa.float64()) for name in found.rewards]
    return pa.Table.from_pylist(rows, schema=pa.schema([*_SCHEMA, *rewards]))


def _of_prompt(prompts: Sequence[Mapping[str, Any]], index: int, found: Evaluation) -> dict[str, Any]:
    prompt = prompts[index]["prompt"]
    return {
        "row_index": index,
        "prompt": without_half_pairs(prompt) if isinstance(prompt, str) else _json(prompt),
        "row": _json(prompts[index]),
        "prompt_tokens": found.prompt_lengths[index] if found.prompt_lengths else None,
    }


def _rows(found: Evaluation, sample: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Index of the prompt, and the columns that differ between completions."""
    evaluated = sample == EVALUATED
    groups, logps = (found.completions, found.logps) if evaluated else (found.kl_completions, found.kl_logps)
    for b, group in enumerate(groups):
        for k, completion in enumerate(group):
            row: dict[str, Any] = {"completion_index": k, "sample": sample, **_of_completion(completion)}
            row |= {column: logps[name][b][k] for name, column in _LOGPS.items() if name in logps}
            if {"logp", "base_logp"} <= set(row):
                row["kl"] = row["logp"] - row["base_logp"]
            if evaluated:
                row |= {f"reward/{name}": finite(values[b][k]) for name, values in found.rewards.items()}
                row["reward"] = finite(found.scores[b][k]) if found.scores else None
                row["extra"] = (
                    _json({name: values[b][k] for name, values in found.extra.items()}) if found.extra else None
                )
            yield b, row


def _of_completion(completion: Completion) -> dict[str, Any]:
    return {
        "completion": without_half_pairs(completion.text),
        "completion_ids": completion.ids,
        "completion_tokens": len(completion.ids),
        "ended": completion.ended,
    }


def _json(value: Any) -> str:
    return without_half_pairs(json.dumps(value, ensure_ascii=False, default=str))


def write_completions(path: Path, tables: Iterable[pa.Table]) -> None:
    """
    Write the completions of all models to a Parquet file, atomically.

    Raises:
        `OSError`: The file cannot be written.
    """
    with replacing(path) as part:
        pq.write_table(pa.concat_tables(tables, promote_options="default"), part, compression="zstd")


@dataclass
class SavedEvaluations:
    """
    What `trl-ext evaluate` wrote.

    Args:
        report (`dict[str, Any]`): Content of the JSON file.
        prompts (`list[dict[str, Any]]`): The dataset's rows.
        evaluations (`dict[str, Evaluation]`): By model, its completions, and its metrics without those of rewards.
    """

    report: dict[str, Any]
    prompts: list[dict[str, Any]]
    evaluations: dict[str, Evaluation]


def read_evaluations(path: str) -> SavedEvaluations:
    """
    Read an evaluation with all of its completions, without rewards.

    Args:
        path (`str`): The JSON file, or the Parquet file beside it.

    Raises:
        `ValueError`: A file has another content, or lacks the completions of a model.
        `OSError`: A file cannot be read.
    """
    report = read_report(str(Path(path).with_suffix(".json")))
    file = completions_file(path)
    if not file.is_file():
        raise FileNotFoundError(f"there is no file '{file}', which holds the completions of {path!r}")
    table = pq.read_table(file)
    if lacking := sorted(set(_SCHEMA.names) - set(table.column_names)):
        raise ValueError(f"'{file}' was not written by trl-ext evaluate: it lacks the columns {', '.join(lacking)}")
    by_model: dict[str, list[dict[str, Any]]] = {}
    prompts: dict[int, dict[str, Any]] = {}
    for row in table.select(_SCHEMA.names).to_pylist():
        by_model.setdefault(row["model"], []).append(row)
        if row["row_index"] not in prompts:
            prompts[row["row_index"]] = json.loads(row["row"])
    evaluations = {}
    for row in report["models"]:
        if "error" in row:
            continue
        if row["model"] not in by_model:
            raise ValueError(f"'{file}' lacks the completions of {row['model']!r}: the files are of two evaluations")
        evaluations[row["model"]] = _evaluation(row, by_model[row["model"]], len(prompts))
    return SavedEvaluations(report, [prompts[index] for index in sorted(prompts)], evaluations)


def _evaluation(row: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], num_prompts: int) -> Evaluation:
    """The evaluation of one model, from its row of the report and its rows of completions."""
    described = ("model", *DESCRIPTION, "generation_seconds", "notes")
    of_rewards = ("reward/", "metric/", "difference/")
    kept = {key: value for key, value in row.items() if key not in described and not key.startswith(of_rewards)}
    notes = {key: note for key, note in row["notes"].items() if not key.startswith(of_rewards)}
    found = Evaluation(metrics=kept, notes=notes, seconds=row["generation_seconds"])
    evaluated = [each for each in rows if each["sample"] == EVALUATED]
    found.completions, found.logps = _grouped(evaluated, num_prompts)
    others = [each for each in rows if each["sample"] == FOR_KL]
    if others:
        found.kl_completions, found.kl_logps = _grouped(others, num_prompts)
    lengths = {each["row_index"]: each["prompt_tokens"] for each in evaluated}
    found.prompt_lengths = [lengths[index] for index in sorted(lengths)]
    return found


def _grouped(
    rows: Sequence[Mapping[str, Any]], num_prompts: int
) -> tuple[list[list[Completion]], dict[str, list[list[float]]]]:
    """Completions and their log-probabilities by prompt."""
    groups: list[list[Completion]] = [[] for _ in range(num_prompts)]
    logps = {
        name: [[] for _ in groups]
        for name, column in _LOGPS.items()
        if rows and all(row[column] is not None for row in rows)
    }  # type: dict[str, list[list[float]]]
    for row in rows:
        groups[row["row_index"]].append(Completion(row["completion"], row["completion_ids"], row["ended"]))
        for name, of_groups in logps.items():
            of_groups[row["row_index"]].append(row[_LOGPS[name]])
    return groups, logps
