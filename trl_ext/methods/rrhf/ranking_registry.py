# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
The losses that `ranking_loss` can name: those of this package, and those that other packages add by an entry point.

```toml
[project.entry-points."trl_ext.ranking_losses"]
my_loss = "my_package:MY_LOSS"
```
"""

import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass

import torch

from trl_ext.plugins import canonical, load_plugins
from trl_ext.validation import check_at_least, did_you_mean

from .losses import ranking_loss
from .ranking_losses import (
    lambda_loss,
    listnet_loss,
    listwise_dpo_loss,
    plackett_luce_loss,
    pro_loss,
    qrpo_loss,
    slic_loss,
)


GROUP = "trl_ext.ranking_losses"

_NAME = re.compile(r"[a-z][a-z0-9_]*")


@dataclass(frozen=True)
class RankingLoss:
    """
    A loss that `ranking_loss` can name, with the defaults of its equation.

    Args:
        name (`str`):
            Its name: lower case letters, digits and underscores.
        loss (`Callable`):
            `(p_N, scores_N, group_N, num_prompts) -> (B,)`: a loss for each prompt from the log-probabilities p of all
            completions of a batch, their scores, and the prompt (0 to B - 1) that each belongs to. Of `beta` and
            `margin` it takes by keyword those that have a value below.
        source (`str`):
            Paper and equation.
        beta (`float`, *optional*):
            Default of `ranking_beta`. `None`: the equation has none.
        margin (`float`, *optional*):
            Default of `margin`. `None`: the equation has none.
        length_penalty (`float`, *optional*, defaults to `1.0`):
            Default of `length_penalty`: `1.0` where the equation has a mean over tokens, `0.0` where it has a sum.
        needs_reference (`bool`, *optional*, defaults to `False`):
            Whether its p has to be a log-ratio (`ranking_reference: policy`).
        is_pointwise (`bool`, *optional*, defaults to `False`):
            Whether a prompt with one completion has a loss.

    Raises:
        `ValueError`: The name is malformed, or a number is negative or not finite.
        `TypeError`: The function cannot be called with these arguments.

    Examples:
    ```python
    >>> import torch
    >>> from trl_ext import RankingLoss

    >>> def spread(p_N, scores_N, group_N, num_prompts, *, beta):
    ...     return p_N.new_zeros(num_prompts).index_add(0, group_N, -beta * p_N * scores_N)

    >>> RankingLoss("spread", spread, source="none", beta=0.5).beta
    0.5
    ```
    """

    name: str
    loss: Callable[..., torch.Tensor]
    source: str
    beta: float | None = None
    margin: float | None = None
    length_penalty: float = 1.0
    needs_reference: bool = False
    is_pointwise: bool = False

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ValueError(
                f"{self.name!r} cannot name a ranking loss: use lower case letters, digits and underscores, a letter "
                "first."
            )
        numbers = {name: getattr(self, name) for name in ("beta", "margin") if getattr(self, name) is not None}
        for name, value in (numbers | {"length_penalty": self.length_penalty}).items():
            check_at_least(f"{name}` of the ranking loss `{self.name}", value, 0)
        try:
            inspect.signature(self.loss).bind(*range(4), **numbers)
        except TypeError as error:
            taken = "".join(f", {name}={value}" for name, value in numbers.items())
            raise TypeError(
                f"The ranking loss {self.name!r} is not called as `loss(p_N, scores_N, group_N, num_prompts{taken})`: "
                f"{error}."
            ) from None


@dataclass(frozen=True)
class Ranking:
    """
    A ranking loss with its numbers. Calling it gives the loss of each prompt, (B,).

    Args:
        member ([`RankingLoss`]): The loss.
        beta (`float`, *optional*), margin (`float`, *optional*): What it is called with, as far as it has them.
        length_penalty (`float`): Exponent of the length that log-probabilities are divided by.
    """

    member: RankingLoss
    beta: float | None
    margin: float | None
    length_penalty: float

    def __call__(
        self, p_N: torch.Tensor, scores_N: torch.Tensor, group_N: torch.Tensor, num_prompts: int
    ) -> torch.Tensor:
        numbers = {"beta": self.beta, "margin": self.margin}
        taken = {name: value for name, value in numbers.items() if value is not None}
        return self.member.loss(p_N, scores_N, group_N, num_prompts, **taken)

    def describe(self) -> str:
        """Its name and numbers, for people."""
        numbers = {"beta": self.beta, "margin": self.margin, "length penalty": self.length_penalty}
        shown = [f"{name} {value:g}" for name, value in numbers.items() if value is not None]
        return ", ".join([self.member.name, *shown])


RRHF = RankingLoss("rrhf", ranking_loss, "RRHF, arXiv 2304.05302, Eq. (2)", margin=0.0)

OWN = {
    member.name: member
    for member in (
        RRHF,
        RankingLoss("plackett_luce", plackett_luce_loss, "Xia et al. 2008; LiPO, arXiv 2402.01878, Eq. (7)", beta=1.0),
        RankingLoss("listnet", listnet_loss, "Cao et al. 2007, Eq. (3)", beta=1.0),
        RankingLoss("lambda", lambda_loss, "LiPO, arXiv 2402.01878, Eq. (8)", beta=0.05, length_penalty=0.0),
        RankingLoss("slic", slic_loss, "SLiC-HF, arXiv 2305.10425, Eq. (4)", beta=1.0, margin=1.0, length_penalty=0.0),
        RankingLoss("pro", pro_loss, "PRO, arXiv 2306.17492", beta=1.0),
        RankingLoss(
            "listwise_dpo",
            listwise_dpo_loss,
            "DPO, arXiv 2305.18290, appendix A.3; LiPO, arXiv 2402.01878, Eqs. (2) and (7)",
            beta=0.1,
            length_penalty=0.0,
            needs_reference=True,
        ),
        RankingLoss(
            "qrpo",
            qrpo_loss,
            "QRPO, arXiv 2507.08068",
            beta=0.1,
            length_penalty=0.0,
            needs_reference=True,
            is_pointwise=True,
        ),
    )
}


def find_ranking_loss(word: str) -> RankingLoss:
    """
    The ranking loss with this name, of this package or of another one.

    Args:
        word (`str`): Its name, with hyphens or underscores.

    Raises:
        `ValueError`: There is none; the message lists those that there are, and the plug-ins that are broken.
    """
    name = canonical(word)
    if name in OWN:  # without a look at other packages
        return OWN[name]
    plugins, broken = load_plugins(GROUP, RankingLoss, "ranking loss", OWN)
    if name in plugins:
        return plugins[name].value
    unusable = "; ".join(f"{each.name} of {each.source}: {each.error}" for each in broken)
    raise ValueError(
        f"`ranking_loss` must be one of {', '.join(plugins)}, got {word!r}{did_you_mean(name, plugins, repr) or '.'}"
        + (f" Plug-ins that could not be loaded: {unusable}." if unusable else "")
    )
