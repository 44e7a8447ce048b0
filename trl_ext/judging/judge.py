# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Judges the completions of two evaluations pair by pair, and reports win rates with intervals."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from trl_ext.evaluation.comparison import differences
from trl_ext.evaluation.files import read_report
from trl_ext.validation import check_at_least

from .pairs import Pair, PolicyCompletions, paired, read_completions
from .verdicts import TIE, VALUES, A, B, Judge, kept_verdicts, questions_of
from .win_rate import Estimate, PairValues, largest_unseen_rate, length_controlled_win_rate, win_rate


_EXCERPT = 200  # letters of a faulty answer in the result


@dataclass
class JudgeResult:
    """
    How often A beats B.

    Parameters:
        judge (`str`):
            What judged.
        policies (`dict[str, dict[str, str]]`):
            Under `"A"` and `"B"` the `policy` and its `file`.
        num_prompts, num_pairs (`int`):
            Prompts and pairs of completions that both have.
        num_judged, num_judged_prompts (`int`):
            Pairs with a verdict in every order, and their prompts. The others have a fault and are left out.
        wins, ties, losses (`int`):
            Pairs that A won, that were a tie, and that B won. A pair that was judged in two orders is won if the
            verdicts are for one policy, or for it and a tie; opposite verdicts are a tie.
        identical (`int`):
            Ties of two equal texts.
        inconsistent (`int`):
            Ties by opposite verdicts in the two orders.
        first_shown (`float`, *optional*):
            Share of the verdicts, other than ties, that were for the completion that was shown first: a half for a
            judge without a bias of position. `None` for a judge that sees one completion at a time.
        win_rate ([`~trl_ext.judging.win_rate.Estimate`], *optional*):
            Mean over prompts of the share of pairs that A won, a tie counted as a half. A win in one order and a tie
            in the other count as three quarters. `None` if nothing was judged.
        length_controlled ([`~trl_ext.judging.win_rate.Estimate`], *optional*):
            The win rate for completions of equal length; see
            [`~trl_ext.judging.win_rate.length_controlled_win_rate`].
        lengths (`dict[str, float]`):
            Mean length of the judged completions of A and of B, in characters.
        faults (`dict[str, int]`):
            By kind, how many verdicts failed.
        fault_examples (`dict[str, str]`):
            By kind, what the judge answered in the first such case.
        cost (`dict[str, int]`):
            Of an endpoint: `requests` and `retries` of this run, `prompt_tokens` and `completion_tokens` of all kept
            verdicts as the server counted them, and `uncounted`, kept verdicts without such a count.
        notes (`list[str]`):
            What was left out, and what the numbers do not show.
        settings (`dict[str, Any]`):
            What the numbers depend on besides the files.
    """

    judge: str
    policies: dict[str, dict[str, str]]
    num_prompts: int
    num_pairs: int
    num_judged: int = 0
    num_judged_prompts: int = 0
    wins: int = 0
    ties: int = 0
    losses: int = 0
    identical: int = 0
    inconsistent: int = 0
    first_shown: float | None = None
    win_rate: Estimate | None = None
    length_controlled: Estimate | None = None
    lengths: dict[str, float] = field(default_factory=dict)
    faults: dict[str, int] = field(default_factory=dict)
    fault_examples: dict[str, str] = field(default_factory=dict)
    cost: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """The result as JSON can hold it."""
        return asdict(self)


def judge(
    file_a: str,
    file_b: str,
    by: Judge,
    *,
    policy_a: str | None = None,
    policy_b: str | None = None,
    verdicts_file: str | None = None,
    overwrite: bool = False,
    retry_faults: bool = False,
    allow_missing: bool = False,
    bootstrap_samples: int = 2000,
    seed: int = 42,
) -> JudgeResult:
    """
    Judge the completions of two policies on the same prompts, pair by pair.

    Completions are matched by their prompt, several of one prompt by their number. A judge that sees both completions
    judges each pair in both orders.

    Args:
        file_a, file_b (`str`):
            Parquet files of `trl-ext evaluate`, or the JSON files beside them. They may be the same.
        by ([`ColumnJudge`], [`RewardJudge`], [`FunctionJudge`] or [`EndpointJudge`]):
            The judge.
        policy_a, policy_b (`str`, *optional*):
            Name of the policy, or its last part, where a file has several.
        verdicts_file (`str`, *optional*):
            `.jsonl` file that keeps the verdicts as they come. The same call asks only for those that it lacks.
        overwrite (`bool`, *optional*, defaults to `False`):
            Whether to delete an existing file of verdicts and start over.
        retry_faults (`bool`, *optional*, defaults to `False`):
            Whether to ask again where the file of verdicts has a fault.
        allow_missing (`bool`, *optional*, defaults to `False`):
            Whether to leave out, with a note, prompts and completions that only one of the policies has.
        bootstrap_samples (`int`, *optional*, defaults to `2000`):
            Samples of the bootstrap over prompts, for the 95 % intervals. `0`: no intervals.
        seed (`int`, *optional*, defaults to `42`):
            Seed of the bootstrap.

    Returns:
        [`JudgeResult`]

    Raises:
        `ValueError`: The files cannot be compared, the judge cannot judge them, or the file of verdicts is of another
            judge or of other pairs.
        `OSError`: A file cannot be read or written.
        [`~trl_ext.endpoint.errors.EndpointError`]: A server failed for good. The verdicts in the file stay there.
    """
    check_at_least("bootstrap_samples", bootstrap_samples, 0)
    a = read_completions(file_a, policy_a, setting="policy_a")
    b = read_completions(file_b, policy_b, setting="policy_b")
    matched = paired(a, b, allow_missing=allow_missing)
    by.check(matched.pairs, (a.columns, b.columns))
    notes = [*matched.notes, *_compared(a, b, by)]
    questions = questions_of(by, matched.pairs)
    rows = kept_verdicts(by, questions, verdicts_file, overwrite=overwrite, retry_faults=retry_faults)
    result = JudgeResult(
        by.name,
        {A: {"policy": a.policy, "file": a.file}, B: {"policy": b.policy, "file": b.file}},
        num_prompts=len({pair.prompt_index for pair in matched.pairs}),
        num_pairs=len(matched.pairs),
        notes=notes,
        settings={**by.identity, "bootstrap_samples": bootstrap_samples, "seed": seed},
    )
    _count(result, matched.pairs, rows, by)
    _estimate(result, matched.pairs, rows, bootstrap_samples, seed)
    result.cost = _cost(by, rows)
    return result


def _by_pair(pairs: Sequence[Pair], rows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """The verdicts of each pair, none if one of them failed."""
    per_pair = len(rows) // len(pairs)
    groups = [rows[start : start + per_pair] for start in range(0, len(rows), per_pair)]
    return [
        [] if any(row["verdict"] is None for row in group) else [row["verdict"] for row in group] for group in groups
    ]


def _value(verdicts: Sequence[str]) -> float:
    """The value of a pair to A: the mean over the orders."""
    return sum(VALUES[verdict] for verdict in verdicts) / len(verdicts)


def _count(result: JudgeResult, pairs: Sequence[Pair], rows: Sequence[Mapping[str, Any]], by: Judge) -> None:
    """Fill in what is counted."""
    judged = [(pair, found) for pair, found in zip(pairs, _by_pair(pairs, rows), strict=True) if found]
    values = [_value(verdicts) for _, verdicts in judged]
    result.num_judged = len(judged)
    result.num_judged_prompts = len({pair.prompt_index for pair, _ in judged})
    result.wins, result.losses = sum(value > 0.5 for value in values), sum(value < 0.5 for value in values)
    result.ties = len(judged) - result.wins - result.losses
    result.identical = sum(pair.identical and set(verdicts) == {TIE} for pair, verdicts in judged)
    result.inconsistent = sum({A, B} <= set(verdicts) for _, verdicts in judged)
    for row in rows:
        if row["fault"] is not None:
            result.fault_examples.setdefault(row["fault"], _excerpt(row.get("answer") or ""))
    result.faults = dict(Counter(row["fault"] for row in rows if row["fault"] is not None))
    if by.sees_both:
        decided = [row for row in rows if row["verdict"] in (A, B)]
        first = sum(row["verdict"] == row["order"][0] for row in decided)
        result.first_shown = first / len(decided) if decided else None
    lengths = [(len(pair.a["completion"]), len(pair.b["completion"])) for pair, _ in judged]
    if lengths:
        result.lengths = {name: sum(of) / len(of) for name, of in zip((A, B), zip(*lengths, strict=True), strict=True)}


def _estimate(
    result: JudgeResult, pairs: Sequence[Pair], rows: Sequence[Mapping[str, Any]], samples: int, seed: int
) -> None:
    """Fill in the win rates, and what to know about them."""
    judged = [(pair, found) for pair, found in zip(pairs, _by_pair(pairs, rows), strict=True) if found]
    if not judged:
        result.notes.append("no pair has a verdict: there is no win rate")
        return
    values = PairValues(
        [_value(verdicts) for _, verdicts in judged],
        [pair.prompt_index for pair, _ in judged],
        [len(pair.a["completion"]) - len(pair.b["completion"]) for pair, _ in judged],
    )
    result.win_rate = win_rate(values, samples, seed)
    result.length_controlled = length_controlled_win_rate(values, samples, seed)
    if result.length_controlled is None:
        result.notes.append("no length-controlled win rate: all pairs differ by the same number of characters")
    if 2 * result.inconsistent > result.num_judged - result.identical:
        result.notes.append(
            f"{result.inconsistent} of {result.num_judged} pairs have opposite verdicts in the two orders: this judge "
            "looks at the place more than at the text, and its win rate says little"
        )
    if result.win_rate.interval is not None and len(set(values.values_N)) == 1:
        unseen = largest_unseen_rate(values.num_prompts)
        result.notes.append(
            f"all verdicts are alike, so that the bootstrap has no width; with {values.num_prompts} prompts, up to "
            f"{unseen:.1%} of others are not excluded"
        )
    if samples and values.num_prompts < 2:
        result.notes.append("no interval: there is one prompt")


def _cost(by: Judge, rows: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Requests of this run and tokens of all verdicts; empty for a judge without a server."""
    endpoint = getattr(by, "endpoint", None)
    if endpoint is None:
        return {}
    answered = [row for row in rows if "prompt_tokens" in row]
    return {
        "requests": endpoint.cost.requests,
        "retries": endpoint.cost.retries,
        **{name: sum(row[name] or 0 for row in answered) for name in ("prompt_tokens", "completion_tokens")},
        "uncounted": sum(row["prompt_tokens"] is None for row in answered),
    }


def _compared(a: PolicyCompletions, b: PolicyCompletions, by: Judge) -> list[str]:
    """
    What two evaluations do not have in common, as notes. Rewards of one name by different models are an error if they
    are compared.
    """
    reports = []
    for policy in (a, b):
        path = Path(policy.file).with_suffix(".json")
        if not path.is_file():
            return [f"{path} is not there, so nothing says how the completions of {policy.file} were made and scored"]
        reports.append(read_report(str(path))["comparison"])
    column = str(by.identity.get("column", ""))
    name = column.removeprefix("reward/")
    sides = [{**report, "prompts": "", "base_model": None, "rewards": {}} for report in reports]
    found = [text for text in differences(*sides) if not text.startswith("reward functions:")]
    if column != name and all(name in report["rewards"] for report in reports):
        of_reward = [{**sides[0], "rewards": {name: report["rewards"][name]}, "sampling": {}} for report in reports]
        if problems := differences(*of_reward):
            raise ValueError(
                f"the column {column!r} of the two files is of different models ({'; '.join(problems)}): score one of "
                "them again with `trl-ext evaluate --from`"
            )
    return [f"the evaluations differ in {text}" for text in found]


def _excerpt(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _EXCERPT else f"{text[:_EXCERPT]}[...]"
