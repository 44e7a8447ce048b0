# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
Keeps what was scored when a later call of a reward function fails.

A round of training may have thousands of completions, whose scores took hours or cost money. If a call fails, the
batches before it are written to a file; a run that comes to the same batches again (the same trainer, or the same
command: completions depend on the seed) takes them from there.
"""

import functools
import hashlib
import inspect
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from trl_ext.atomic_files import write_text

from .functions import Reward, resolved


logger = logging.getLogger(__name__)


@dataclass
class BatchScores:
    """
    What one call of a reward function gave.

    Args:
        rewards (`list[float | None]`): The reward of each completion.
        metrics (`list[tuple[str, float]]`, *optional*): Its calls of `log_metric`.
        extra (`dict[str, list]`, *optional*): The columns it gave to `log_extra`.
    """

    rewards: list[float | None]
    metrics: list[tuple[str, float]] = field(default_factory=list)
    extra: dict[str, list[Any]] = field(default_factory=dict)


class KeptScores:
    """
    The batches of a scoring that failed.

    Args:
        path (`Path`, *optional*):
            File for them. It exists only after a failure, until everything is scored. Without it nothing is kept.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self._found: dict[str, BatchScores] = {}  # in the file, from a scoring that failed
        self._used: set[str] = set()  # keys of these that a batch has asked for
        self._scores: dict[str, BatchScores] = {}  # of this scoring

    def get(self, reward: Reward, call: dict[str, Any], score: Callable[[], BatchScores]) -> BatchScores:
        """
        The scores of a batch: those that were kept, or else those of `score`.

        Args:
            reward ([`~trl_ext.rewards.functions.Reward`]): The reward function.
            call (`dict[str, Any]`): The arguments of its call that depend on the completions.
            score (`Callable`): Calls it.
        """
        if self.path is None:
            return score()
        key = _key(reward, call)
        if not key:
            return score()
        if key in self._found:
            self._used.add(key)
            return self._found[key]
        self._scores[key] = scores = score()
        return scores

    @contextmanager
    def keeping(self) -> Iterator[None]:
        """Inside this context, an error writes what was scored to the file, and the end without one removes it."""
        self._load()
        try:
            yield
        except BaseException as error:
            self._save(error)
            raise
        if self._used:
            reused = sum(len(self._found[key].rewards) for key in self._used)
            logger.warning("%d rewards were taken from %s, which a failed scoring left there.", reused, self.path)
        if self.path is not None and self._used == set(self._found):  # else some are of another scoring
            self.path.unlink(missing_ok=True)

    def _load(self) -> None:
        self._scores, self._found, self._used = {}, {}, set()
        if self.path is not None and self.path.is_file():
            document = json.loads(self.path.read_text(encoding="utf-8"))
            self._found = {key: BatchScores(**value) for key, value in document.items()}

    def _save(self, error: BaseException) -> None:
        every = self._found | self._scores
        if self.path is None or not every:
            return
        number = sum(len(scores.rewards) for scores in every.values())
        document = {key: asdict(scores) for key, scores in every.items()}
        write_text(self.path, json.dumps(document, default=str))
        error.add_note(
            f"The {number} rewards that were computed before are in {self.path}; the same run uses them again. Delete "
            "the file to score all of them again."
        )


def _key(reward: Reward, call: dict[str, Any]) -> str:
    """Identifies a batch by the reward function and everything it is called with; `""` for an unknown function."""
    code = identity_of(reward)
    content = json.dumps([reward.name, code, call], sort_keys=True, default=str)
    return hashlib.sha256(content.encode()).hexdigest() if code else ""


def identity_of(reward: Reward) -> str:
    """What distinguishes a reward from another one of the same name; `""` if its source is unknown."""
    return source_of(reward.func) if reward.model is None else reward.model.identity


def sources_of(names: Sequence[str]) -> dict[str, str]:
    """
    What a file of scores keeps of reward functions, so that it is not continued with others of the same name.

    Args:
        names (`Sequence[str]`): Rewards as [`~trl_ext.rewards.functions.load_rewards`] takes them.

    Returns:
        `dict[str, str]`: For each that is a function in Python, `source of <name>` and a hash of its source.
    """
    found = {name: resolved(name) for name in names}
    sources = {name: source_of(func) for name, func in found.items() if callable(func)}
    return {f"source of {name}": hashlib.sha256(text.encode()).hexdigest()[:16] for name, text in sources.items()}


def fingerprint_of(reward: Reward) -> str | None:
    """
    Hash of the source of a reward function, without the rest of its file, to recognize the same one in another
    evaluation; `None` for a model, and for a function whose source is unknown.
    """
    if reward.model is not None:
        return None
    func, given = _without_arguments(reward.func)
    try:
        text = given + inspect.getsource(func if inspect.isroutine(func) else type(func))
    except (OSError, TypeError):
        return None
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _without_arguments(func: Any) -> tuple[Any, str]:
    """A function, and the arguments that a `partial` gives it."""
    given = ""
    while isinstance(func, functools.partial):
        func, given = func.func, f"{given}{func.args}{func.keywords}"
    return func, given


def source_of(func: Any) -> str:
    """The source of the file that defines a function, which may be corrected before the next run; `""` if unknown."""
    func, given = _without_arguments(func)
    source = func if inspect.isroutine(func) else type(func)
    try:
        module = inspect.getmodule(source)
        return given + inspect.getsource(source if module is None or module.__name__ == "__main__" else module)
    except (OSError, TypeError):
        return ""
