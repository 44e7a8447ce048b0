# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
Pairs of completions of two policies for the same prompt, from the Parquet files that `trl-ext evaluate` writes.

[`read_completions`] reads those of one policy, [`paired`] matches them by prompt.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from trl_ext.data.schema import as_completion, extra_columns
from trl_ext.evaluation.files import short_names


# Columns of the file that pairs need, and the value of `sample` of completions that rewards were measured on.
_COLUMNS = ("model", "sample", "row_index", "completion_index", "row", "completion")
_EVALUATED = "evaluated"
_SHOWN = 60  # letters of a prompt in an error


@dataclass(frozen=True)
class PolicyCompletions:
    """
    The completions of one policy in a file.

    Args:
        file (`str`): The Parquet file.
        policy (`str`): Name of the policy.
        prompts (`list[dict[str, Any]]`): The dataset's rows, with their `prompt`.
        groups (`list[list[dict[str, Any]]]`): The rows of the file for each prompt, in the order of
            `completion_index`.
        columns (`tuple[str, ...]`): Columns of the file.
    """

    file: str
    policy: str
    prompts: list[dict[str, Any]]
    groups: list[list[dict[str, Any]]]
    columns: tuple[str, ...]


@dataclass(frozen=True)
class Pair:
    """
    Two completions of one prompt.

    Args:
        prompt_index (`int`): Number of the prompt among those that are judged.
        completion_index (`int`): Number of the pair among those of the prompt.
        row (`dict[str, Any]`): The dataset's row, with its `prompt`: text or messages.
        a, b (`Mapping[str, Any]`): The rows of the files. The text is in `completion`.
    """

    prompt_index: int
    completion_index: int
    row: dict[str, Any]
    a: Mapping[str, Any]
    b: Mapping[str, Any]

    @property
    def identical(self) -> bool:
        """Whether the two texts are equal, so that no judge needs to be asked."""
        return bool(self.a["completion"] == self.b["completion"])

    def contents(self, swapped: bool = False) -> tuple[Any, Any]:
        """Both completions in the form of the prompt, text or messages; that of B first if they are swapped."""
        sides = (self.b, self.a) if swapped else (self.a, self.b)
        first, second = (as_completion(self.row, side["completion"]) for side in sides)
        return first, second


@dataclass(frozen=True)
class Pairs:
    """
    The pairs of two policies.

    Args:
        pairs (`list[Pair]`): In the order of the prompts of A.
        notes (`list[str]`): What is not judged because only one of the policies has it, and columns of the dataset
            that have other values in the two files.
    """

    pairs: list[Pair]
    notes: list[str] = field(default_factory=list)


def read_completions(path: str, policy: str | None = None, *, setting: str = "policy") -> PolicyCompletions:
    """
    Read the evaluated completions of one policy.

    Args:
        path (`str`): The Parquet file of an evaluation, or the JSON file beside it.
        policy (`str`, *optional*): Name of the policy, or its last part (`last` of `outputs/run/last`). Needed where
            the file has several.
        setting (`str`, *optional*, defaults to `"policy"`): What the caller calls `policy`, for errors.

    Raises:
        `ValueError`: The file was not written by `trl-ext evaluate`, or does not have the policy, or has several and
            none is named.
        `OSError`: The file cannot be read.
    """
    file = Path(path).with_suffix(".parquet") if Path(path).suffix == ".json" else Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"there is no file '{file}': pass the .parquet file of trl-ext evaluate")
    try:
        columns = tuple(pq.read_schema(file).names)
    except (OSError, ValueError) as error:  # ArrowInvalid is a ValueError
        raise ValueError(f"'{file}' is no Parquet file: pass the .parquet file of trl-ext evaluate") from error
    if lacking := sorted(set(_COLUMNS) - set(columns)):
        raise ValueError(f"'{file}' was not written by trl-ext evaluate: it lacks the columns {', '.join(lacking)}")
    names = list(dict.fromkeys(pq.read_table(file, columns=["model"])["model"].to_pylist()))
    chosen = _chosen(str(file), names, policy, setting)
    rows = pq.read_table(file, filters=[("model", "=", chosen), ("sample", "=", _EVALUATED)]).to_pylist()
    if not rows:
        raise ValueError(f"'{file}' has no evaluated completions of {chosen!r}")
    by_prompt: dict[int, list[dict[str, Any]]] = {}
    for row in rows:
        by_prompt.setdefault(row["row_index"], []).append(row)
    groups = [sorted(by_prompt[index], key=lambda row: row["completion_index"]) for index in sorted(by_prompt)]
    return PolicyCompletions(str(file), chosen, [json.loads(group[0]["row"]) for group in groups], groups, columns)


def _chosen(file: str, names: Sequence[str], policy: str | None, setting: str) -> str:
    """The policy of a file that is named, or its only one."""
    listed = ", ".join(map(repr, names))
    if policy is None:
        if len(names) != 1:
            raise ValueError(f"'{file}' has the policies {listed}: choose one with {setting}")
        return names[0]
    short = short_names(list(names))
    found = [name for name in names if policy == name] or [name for name in names if policy == short[name]]
    if not found:
        raise ValueError(f"{setting}: '{file}' has no policy {policy!r}, only {listed}")
    return found[0]


def paired(a: PolicyCompletions, b: PolicyCompletions, *, allow_missing: bool = False) -> Pairs:
    """
    Match the completions of two policies: prompts by their content, completions of a prompt by their number.

    A prompt that a dataset has twice is matched by its other columns, and where these do not tell, in the order of the
    rows. Judges get the columns of A.

    Args:
        a, b ([`PolicyCompletions`]): The two policies.
        allow_missing (`bool`, *optional*, defaults to `False`): Whether to leave out, with a note, what only one of
            them has.

    Raises:
        `ValueError`: They have no prompt in common; or one has a prompt, or more completions of one, than the other,
            and `allow_missing` is not set.
    """
    places = _places(a, b)
    if not places:
        raise ValueError(
            f"'{a.file}' and '{b.file}' have no prompt in common: pass two evaluations of the same prompts. The first "
            f"ones are {_shown(a.prompts[0])} and {_shown(b.prompts[0])}"
        )
    problems = [
        *_only(a, [index for index in range(len(a.prompts)) if index not in places]),
        *_only(b, sorted(set(range(len(b.prompts))) - set(places.values()))),
    ]
    pairs: list[Pair] = []
    uneven = []
    for number, index in enumerate(sorted(places)):
        row, (first, second) = a.prompts[index], (a.groups[index], b.groups[places[index]])
        uneven += [(row, len(first), len(second))] if len(first) != len(second) else []
        pairs += [Pair(number, k, row, x, y) for k, (x, y) in enumerate(zip(first, second, strict=False))]
    if uneven:
        row, first_count, second_count = uneven[0]
        problems.append(
            f"{len(uneven)} of {len(places)} prompts have another number of completions in the two files, such as "
            f"{first_count} and {second_count} of {_shown(row)}"
        )
    if problems and not allow_missing:
        raise ValueError(
            f"{'; '.join(problems)}. Evaluate both on the same prompts, or set allow_missing to leave out what only "
            "one of them has"
        )
    return Pairs(pairs, [*(f"left out: {problem}" for problem in problems), *_other_columns(a, b, places)])


def _places(a: PolicyCompletions, b: PolicyCompletions) -> dict[int, int]:
    """By the index of a prompt of A, that of B: first of rows that are equal, then of those with the same prompt."""
    places: dict[int, int] = {}
    for names in (None, ("prompt",)):
        left_a = [index for index in range(len(a.prompts)) if index not in places]
        left_b = sorted(set(range(len(b.prompts))) - set(places.values()))
        of_a, of_b = _keyed(a, left_a, names), _keyed(b, left_b, names)
        places |= {index: of_b[key] for key, index in of_a.items() if key in of_b}
    return places


def _keyed(
    policy: PolicyCompletions, indices: Iterable[int], names: Sequence[str] | None
) -> dict[tuple[str, int], int]:
    """The indices by the columns of their rows, all without `names`, and by how often the same came before."""
    seen: dict[str, int] = {}
    found = {}
    for index in indices:
        row = policy.prompts[index]
        text = _json(row if names is None else [row[name] for name in names])
        found[text, seen.get(text, 0)] = index
        seen[text] = seen.get(text, 0) + 1
    return found


def _other_columns(a: PolicyCompletions, b: PolicyCompletions, places: Mapping[int, int]) -> Iterable[str]:
    """A note if columns that judges get have other values in the two files."""
    names: dict[str, None] = {}
    count = 0
    for i, j in places.items():
        of_a, of_b = extra_columns([a.prompts[i]]), extra_columns([b.prompts[j]])
        differ = [name for name in of_a | of_b if _json(of_a.get(name)) != _json(of_b.get(name))]
        names |= dict.fromkeys(differ)
        count += bool(differ)
    if count:
        yield (
            f"{count} of {len(places)} prompts have other values of {', '.join(map(repr, names))} in the two files: a "
            "judge gets those of A"
        )


def _only(policy: PolicyCompletions, indices: Sequence[int]) -> Iterable[str]:
    if indices:
        shown = _shown(policy.prompts[indices[0]])
        yield f"{len(indices)} of {len(policy.prompts)} prompts are only in '{policy.file}', such as {shown}"


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False)


def _shown(row: Mapping[str, Any]) -> str:
    prompt = _json(row["prompt"])
    return prompt if len(prompt) <= _SHOWN else f"{prompt[:_SHOWN]}[...]"
