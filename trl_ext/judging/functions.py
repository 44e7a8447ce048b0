# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""A Python function that compares two completions, as a judge."""

import inspect
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar

from trl_ext.data.schema import extra_columns
from trl_ext.rewards.async_calls import wait_for
from trl_ext.rewards.functions import import_function
from trl_ext.rewards.kept_scores import source_of

from .pairs import Pair
from .verdicts import TIE, VERDICTS, Judge, Question


NO_VERDICT = "no verdict"  # the fault of a pair for which a function returns `None`
_ARGUMENTS = ("prompts", "completions_a", "completions_b")


class FunctionJudge(Judge):
    """
    Asks a Python function which of two completions is better, each pair in both orders.

    The function is called with lists that have an entry per pair: `prompts`, `completions_a` and `completions_b`
    (text, or lists of messages if the prompt is messages), and those of the dataset's other columns that it has
    parameters for. It returns for each pair `"A"` (the completion in `completions_a` is better), `"B"`, `"TIE"`, or
    `None` where it has no verdict, which counts as the fault `"no verdict"`. It may be async. Equal texts are a tie
    without a call.

    Args:
        func (`Callable` or `str`): The function, its import path (`"package.module.function"`) or its file
            (`"folder/judges.py:function"`).

    Raises:
        `ValueError`: There is no such function.
    """

    sees_both: ClassVar[bool] = True

    def __init__(self, func: Callable[..., Any] | str) -> None:
        self.func: Any = import_function(func, "judge") if isinstance(func, str) else func

    @property
    def name(self) -> str:
        return f"function {getattr(self.func, '__name__', type(self.func).__name__)}"

    @property
    def identity(self) -> dict[str, Any]:
        return {"judge": "function", "name": self.name, "source": source_of(self.func)}

    def check(self, pairs: Sequence[Pair], columns: Sequence[Iterable[str]]) -> None:
        passed = extra_columns([pairs[0].row])
        for name, parameter in inspect.signature(self.func).parameters.items():
            known = name in _ARGUMENTS or name in passed or parameter.default is not parameter.empty
            if not known and parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
                raise ValueError(
                    f"the judge {self.name!r} needs the column {name!r}, which the dataset lacks. A judge gets "
                    f"{', '.join((*_ARGUMENTS, *passed))}"
                )

    def judge(self, questions: Sequence[Question]) -> list[dict[str, Any]]:
        asked = [each for each in questions if not each.pair.identical]
        found = iter(self._call(asked) if asked else [])
        rows = []
        for each in questions:
            verdict = TIE if each.pair.identical else next(found)
            rows.append(each.answered(verdict, NO_VERDICT if verdict is None else None))
        return rows

    def _call(self, questions: Sequence[Question]) -> list[str | None]:
        contents = [each.pair.contents(each.swapped) for each in questions]
        rows = [each.pair.row for each in questions]
        columns = extra_columns(rows)
        taken = inspect.signature(self.func).parameters
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in taken.values()):
            columns = {name: values for name, values in columns.items() if name in taken}
        output = self.func(
            prompts=[row["prompt"] for row in rows],
            completions_a=[first for first, _ in contents],
            completions_b=[second for _, second in contents],
            **columns,
        )
        output = wait_for(output) if inspect.isawaitable(output) else output
        if not isinstance(output, list | tuple) or len(output) != len(questions):
            raise ValueError(
                f"the judge {self.name!r} must return a list with a verdict for each of {len(questions)} pairs, got "
                f"{output!r:.200}"
            )
        for index, verdict in enumerate(output):
            if verdict is not None and verdict not in VERDICTS:
                raise ValueError(
                    f"the judge {self.name!r} returned {verdict!r} for pair {index}, but must return 'A', 'B', 'TIE' "
                    "or None"
                )
        return list(output)
