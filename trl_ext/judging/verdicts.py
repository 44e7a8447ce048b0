# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
Verdicts: what judges are asked and what they return, kept in a file of which a later run asks only for the rest.

A row of the file has `prompt_index`, `completion_index`, `order` ("AB", or "BA" where the completion of B was shown
first), `verdict` ("A", "B" or "TIE", in terms of the policies whatever the order; `null` after a fault), `fault` (its
kind, or `null`) and what the judge adds: scores, its answer, tokens.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

from trl_ext.data.resumable_file import ROW_INDEX
from trl_ext.data.row_threads import run_batches, run_rows
from trl_ext.validation import check_at_least

from .pairs import Pair


A, B, TIE = "A", "B", "TIE"
VERDICTS = (A, B, TIE)
VALUES = {A: 1.0, TIE: 0.5, B: 0.0}  # to policy A
_SWAPPED = {A: B, B: A, TIE: TIE}


@dataclass(frozen=True)
class Question:
    """
    A pair in one order.

    Args:
        pair ([`~trl_ext.judging.pairs.Pair`]): The pair.
        swapped (`bool`): Whether the completion of B is shown first.
    """

    pair: Pair
    swapped: bool = False

    @property
    def contents(self) -> dict[str, Any]:
        """The row and the texts, which every judge sees. See [`Judge.contents`] for those that see more."""
        sides = (self.pair.b, self.pair.a) if self.swapped else (self.pair.a, self.pair.b)
        return {"row": self.pair.row, "completions": [side["completion"] for side in sides]}

    def answered(self, shown: str | None, fault: str | None = None, **more: Any) -> dict[str, Any]:
        """
        The row of the file for a verdict.

        Args:
            shown (`str`, *optional*): The verdict in the order that was shown: `"A"` is the first completion.
            fault (`str`, *optional*): Why there is none.
            more: Further columns.
        """
        verdict = None if shown is None else _SWAPPED[shown] if self.swapped else shown
        place = {"prompt_index": self.pair.prompt_index, "completion_index": self.pair.completion_index}
        return {**place, "order": "BA" if self.swapped else "AB", "verdict": verdict, "fault": fault, **more}


class Judge(ABC):
    """
    What gives verdicts on pairs: [`~trl_ext.ColumnJudge`], [`~trl_ext.RewardJudge`], [`~trl_ext.FunctionJudge`] or
    [`~trl_ext.EndpointJudge`].

    Attributes:
        sees_both (`bool`): Whether it sees both completions at once, so that their order may matter. Each pair is then
            judged in both orders.
        batch_size (`int`): Pairs in one call of [`judge`].
    """

    sees_both: ClassVar[bool]
    batch_size: int = 64

    @property
    @abstractmethod
    def name(self) -> str:
        """What it is called in tables."""

    @property
    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """Everything that its verdicts depend on besides the pairs, as JSON can hold it."""

    @abstractmethod
    def judge(self, questions: Sequence[Question]) -> list[dict[str, Any]]:
        """The row of each question, from [`Question.answered`]."""

    def contents(self, question: Question) -> dict[str, Any]:
        """Everything of a question that the verdict depends on. If it changes, kept verdicts are not used."""
        return question.contents

    def check(self, pairs: Sequence[Pair], columns: Sequence[Iterable[str]]) -> None:  # noqa: B027
        """
        Raise a `ValueError` if it cannot judge pairs.

        Args:
            pairs (`Sequence[Pair]`): All pairs.
            columns (`Sequence[Iterable[str]]`): The columns of both files.
        """

    def collect(self, questions: Sequence[Question], **file: Any) -> None:
        """Have all questions answered into a file, whose settings are arguments of `run_rows` and `run_batches`."""
        run_batches(
            [self.contents(question) for question in questions],
            lambda indices: self.judge([questions[index] for index in indices]),
            settings=self.identity,
            batch_size=self.batch_size,
            **file,
        )


class ConcurrentJudge(Judge):
    """A judge that is asked about one pair at a time, from several threads."""

    workers: int = 1

    @abstractmethod
    def ask(self, question: Question) -> dict[str, Any]:
        """The row of a question. Called from several threads."""

    def stop(self) -> None:
        """Called after Ctrl-C: running calls of [`ask`] should end soon."""

    def judge(self, questions: Sequence[Question]) -> list[dict[str, Any]]:
        return [self.ask(question) for question in questions]

    def collect(self, questions: Sequence[Question], **file: Any) -> None:
        run_rows(
            [self.contents(question) for question in questions],
            lambda index, _: self.ask(questions[index]),
            settings=self.identity,
            workers=self.workers,
            stop=self.stop,
            **file,
        )


def questions_of(judge: Judge, pairs: Sequence[Pair]) -> list[Question]:
    """Each pair, in both orders for a judge that sees both completions."""
    orders = (False, True) if judge.sees_both else (False,)
    return [Question(pair, swapped) for pair in pairs for swapped in orders]


def kept_verdicts(
    judge: Judge,
    questions: Sequence[Question],
    path: str | None = None,
    *,
    overwrite: bool = False,
    retry_faults: bool = False,
) -> list[dict[str, Any]]:
    """
    The rows of all questions: those in the file, and those that the judge is asked for now.

    Args:
        judge ([`Judge`]): The judge.
        questions (`Sequence[Question]`): From [`questions_of`].
        path (`str`, *optional*): `.jsonl` file that keeps them. Each is written as soon as it comes.
        overwrite (`bool`, *optional*, defaults to `False`): Whether to delete an existing file and start over.
        retry_faults (`bool`, *optional*, defaults to `False`): Whether to ask again where the file has a fault.

    Raises:
        `ValueError`: The file has verdicts of another judge or of other pairs, or is no `.jsonl` file.
    """
    if path is not None and Path(path).suffix != ".jsonl":
        raise ValueError(f"the file of verdicts must end in .jsonl, got {path!r}")
    check_at_least("batch_size", judge.batch_size, 1)
    with TemporaryDirectory() as folder:
        file = str(Path(path).expanduser()) if path is not None else f"{folder}/verdicts.jsonl"
        again = (lambda row: row["fault"] is not None) if retry_faults else None
        more = {"overwrite": overwrite, "again": again, "name": "judging", "unit": "verdicts"}
        try:
            judge.collect(questions, output_file=file, **more)
        except BaseException as error:
            if path is None and hasattr(error, "__notes__"):  # which say where to resume
                error.__notes__.clear()
            raise
        lines = Path(file).read_text(encoding="utf-8").split("\n")
        return sorted((json.loads(line) for line in lines if line), key=lambda row: row[ROW_INDEX])
