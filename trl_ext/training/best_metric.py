# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""The metric by which `load_best_model_at_end` and `save_strategy: best` choose: does it exist, and should it fall?"""

from collections.abc import Iterable

from trl_ext.validation import did_you_mean


_FALLING = ("loss", "kl")  # `loss`, `loss/sft`, `kl`, `objective/kl`; with several datasets also `heldout_loss`


def smaller_is_better(metric: str) -> bool:
    """
    Whether the best value of a metric is the smallest.

    transformers looks at the end of the name only, and would keep the model with the largest `loss/sft`.
    """
    return any(part.rpartition("_")[2] in _FALLING for part in metric.split("/"))


def check_best_metric(metric: str | None, evaluated: Iterable[str]) -> None:
    """
    Check that evaluations have the metric of `metric_for_best_model`.

    Args:
        metric (`str`, *optional*): The setting, with or without `eval_` in front.
        evaluated (`Iterable[str]`): Names of the metrics of an evaluation.

    Raises:
        `ValueError`: They do not.
    """
    names = [name.removeprefix("eval_") for name in evaluated if name.startswith("eval_")]
    wanted = (metric or "").removeprefix("eval_")
    if wanted and wanted not in names:
        raise ValueError(
            f"`metric_for_best_model` is {metric!r}, which evaluations here do not have"
            f"{did_you_mean(wanted, names, repr) or '.'} They have {', '.join(sorted(names))}."
        )
