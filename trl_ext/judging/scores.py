# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Judges that give each completion a number: rewards, and columns that both files have. The higher number wins."""

import math
import numbers
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from trl_ext.rewards.functions import Reward, check_reward_columns, check_reward_prompts
from trl_ext.rewards.kept_scores import identity_of

from .pairs import Pair
from .verdicts import TIE, A, B, Judge, Question


if TYPE_CHECKING:
    from trl_ext.data.completion import Completion

NO_SCORE = "no score"  # the fault of a pair that has none


class ColumnJudge(Judge):
    """
    Compares numbers that both files have, such as `"reward/brevity"` or `"completion_tokens"`. The higher one wins.

    A pair without a number on either side has the fault `"no score"`.

    Args:
        column (`str`): Name of the column; the `reward/` of a reward may be left out.
    """

    sees_both: ClassVar[bool] = False

    def __init__(self, column: str) -> None:
        self.column = column

    @property
    def name(self) -> str:
        return f"column {self.column}"

    @property
    def identity(self) -> dict[str, Any]:
        return {"judge": "column", "column": self.column}

    def check(self, pairs: Sequence[Pair], columns: Sequence[Iterable[str]]) -> None:
        """Find the column in both files."""
        names = [name for name in columns[0] if all(name in of_file for of_file in columns)]
        found = [name for name in (self.column, f"reward/{self.column}") if name in names]
        numeric = [
            name for name in names if all(_is_number(side[name]) for pair in pairs for side in (pair.a, pair.b))
        ]
        if not found or found[0] not in numeric:
            problem = "has other values than numbers" if found else "is not in both files"
            raise ValueError(f"the column {self.column!r} {problem}: numbers in both are in {', '.join(numeric)}")
        self.column = found[0]

    def contents(self, question: Question) -> dict[str, Any]:
        """With the numbers: completions that were scored again have others."""
        return {**question.contents, "scores": [side[self.column] for side in (question.pair.a, question.pair.b)]}

    def judge(self, questions: Sequence[Question]) -> list[dict[str, Any]]:
        return [_by_scores(each, each.pair.a[self.column], each.pair.b[self.column]) for each in questions]


class RewardJudge(Judge):
    """
    Compares the rewards of completions, from one or several reward functions or models. The higher one wins.

    The two completions of a pair are passed in one call, so that a function may compare them. A pair in which no
    function applies to one of the completions has the fault `"no score"`.

    Args:
        rewards (`Sequence[Reward]`): From [`~trl_ext.load_rewards`].
        weights (`Sequence[float]`, *optional*): One per reward, 1 by default: the weighted sum decides.
    """

    sees_both: ClassVar[bool] = False
    batch_size = 256

    def __init__(self, rewards: Sequence[Reward], weights: Sequence[float] | None = None) -> None:
        if not rewards:
            raise ValueError("there is no reward to judge by")
        self.rewards, self.weights = list(rewards), None if weights is None else list(weights)

    @property
    def name(self) -> str:
        return f"reward {' + '.join(reward.name for reward in self.rewards)}"

    @property
    def identity(self) -> dict[str, Any]:
        known = {reward.name: identity_of(reward) for reward in self.rewards}
        return {"judge": "reward", "rewards": known, "weights": self.weights}

    def check(self, pairs: Sequence[Pair], columns: Sequence[Iterable[str]]) -> None:
        check_reward_columns(self.rewards, pairs[0].row)
        check_reward_prompts(self.rewards, pairs[0].row["prompt"])

    def contents(self, question: Question) -> dict[str, Any]:
        """With the token ids, which reward functions get."""
        ids = [side.get("completion_ids") for side in (question.pair.a, question.pair.b)]
        return {**question.contents, "completion_ids": ids}

    def judge(self, questions: Sequence[Question]) -> list[dict[str, Any]]:
        from trl_ext.rewards.scoring import score_completions

        groups = [[_completion(each.pair.a), _completion(each.pair.b)] for each in questions]
        rows = [each.pair.row for each in questions]
        # There is no trainer. A function that asks for its state gets an empty one, which imports torch.
        asks = any("trainer_state" in _parameters(reward) for reward in self.rewards)
        state: dict[str, Any] = {} if asks else {"trainer_state": None}
        scored = score_completions(rows, groups, self.rewards, self.weights, **state)
        return [_by_scores(each, *(x.score for x in group)) for each, group in zip(questions, scored, strict=True)]


def _by_scores(question: Question, a: float | None, b: float | None) -> dict[str, Any]:
    """The verdict of two scores."""
    a, b = (None if score is None or math.isnan(score) else score for score in (a, b))
    if a is None or b is None:
        return question.answered(None, NO_SCORE, score_a=a, score_b=b)
    return question.answered(A if a > b else B if b > a else TIE, score_a=a, score_b=b)


def _is_number(value: Any) -> bool:
    return value is None or (isinstance(value, numbers.Real) and not isinstance(value, bool))


def _completion(row: Any) -> "Completion":
    from trl_ext.data.completion import Completion

    return Completion(row["completion"], row.get("completion_ids") or [], bool(row.get("ended", True)))


def _parameters(reward: Reward) -> set[str]:
    """Names of the parameters of a reward function."""
    import inspect

    try:
        return set(inspect.signature(reward.func).parameters)
    except (TypeError, ValueError):  # a function in C
        return set()
