# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
Reward function on IFEval's prompts ([2311.07911](https://huggingface.co/papers/2311.07911)), a test set that is not
ours: the checkers are lm-evaluation-harness's.

The dataset is `google/IFEval` on the Hub, with the columns `prompt`, `instruction_id_list` and `kwargs`.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from trl_ext.packages import Package, require_package

from .constraints import ConstraintError
from .text import answer_text


LM_EVAL = Package("'trl-ext[ifeval]'", ("lm_eval",))


def ifeval_met(
    prompts: Sequence[str | list[dict[str, Any]]],
    completions: Sequence[str | list[dict[str, Any]]],
    instruction_id_list: Sequence[Sequence[str]],
    kwargs: Sequence[Sequence[Mapping[str, Any] | None]],
    log_metric: Callable[[str, float], None] | None = None,
    **columns: Any,
) -> list[float]:
    """
    Reward function: the share of IFEval's instructions that the completion follows, from 0 to 1.

    The mean over prompts is near IFEval's instruction-level strict accuracy, which averages over instructions. The
    logged `ifeval/all_followed` is its prompt-level strict accuracy.

    Args:
        prompts (`Sequence`): Texts or lists of messages.
        completions (`Sequence`): Texts or lists of messages.
        instruction_id_list (`Sequence`): Column of the dataset: the names of each row's instructions.
        kwargs (`Sequence`): Column of the dataset: the arguments of each of them.
        log_metric (`Callable`, *optional*): Gets `ifeval/all_followed`.
        columns: Further arguments of reward functions, which are not used.

    Returns:
        `list[float]`: The rewards.

    Raises:
        [`~trl_ext.instructions.constraints.ConstraintError`]: lm-eval has no such instruction, or one has no
            arguments.
        `ImportError`: lm-eval, or a package that its checkers need, is not installed.
    """
    require_package("ifeval_met", LM_EVAL)
    module = _checkers()
    rewards, followed_all = [], []
    for row, (prompt, completion, names, arguments) in enumerate(
        zip(prompts, completions, instruction_id_list, kwargs, strict=True)
    ):
        _check_row(names, arguments, module.instructions_registry.INSTRUCTION_DICT, row)
        example = module.InputExample(
            key=row,
            instruction_id_list=list(names),
            prompt=answer_text(prompt),
            kwargs=[dict(each or {}) for each in arguments],
        )
        followed = module.test_instruction_following_strict(example, answer_text(completion)).follow_instruction_list
        rewards.append(sum(followed) / len(followed))
        followed_all.append(all(followed))
    if log_metric is not None and rewards:
        log_metric("ifeval/all_followed", sum(followed_all) / len(followed_all))
    return rewards


@functools.cache
def _checkers() -> Any:
    """lm-eval's module; the language detector that it uses gives the same answer each time once it has a seed."""
    import langdetect
    from lm_eval.tasks.ifeval import utils

    langdetect.DetectorFactory.seed = 0
    return utils


def _check_row(names: Sequence[str], arguments: Sequence[Any], known: Mapping[str, Any], row: int) -> None:
    if not names or len(names) != len(arguments):
        raise ConstraintError(
            f"Row {row}: `instruction_id_list` has {len(names)} instructions and `kwargs` {len(arguments)} entries; "
            "IFEval has one for each instruction, and at least one."
        )
    for name in names:
        if name not in known:
            raise ConstraintError(f"Row {row}: lm-eval has no checker of the instruction {name!r}.")
