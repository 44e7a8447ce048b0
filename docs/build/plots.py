# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
A hook of mkdocs: plots of the losses, and of the KL of best-of-n, from the functions that compute them, as SVG files
of the site.

Lines differ in dash and shade, so that they can be told apart without colour; the mid-grey of axes and text is legible
on light and dark pages.
"""

from collections.abc import Callable
from io import StringIO
from typing import TYPE_CHECKING

import matplotlib
import torch


matplotlib.use("agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from trl_ext.inference.best_of_n import kl_bound
from trl_ext.methods.proxy_rlhf.losses import induced_logps
from trl_ext.methods.psle.losses import decayed, sft_weights
from trl_ext.methods.rrhf.losses import ranking_loss
from trl_ext.training.returns import td_lambda


if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files

INK = "#808080"
FIRST, SECOND, THIRD = "#3f51b5", "#e07b00", "#2e9c6e"
STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "trl-ext",
    "font.size": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK),
}


def on_files(files: "Files", config: "MkDocsConfig") -> "Files":
    """Add the plots."""
    from mkdocs.structure.files import File  # tests import this module without mkdocs

    for name, plot in PLOTS.items():
        files.append(File.generated(config, f"assets/losses/{name}.svg", content=svg(plot)))
    return files


def svg(plot: Callable[[Axes], None]) -> str:
    """A plot as an SVG document."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(6, 3), layout="constrained")
        plot(axes)
        figure.legend(
            *axes.get_legend_handles_labels(), loc="outside upper center", ncols=2, frameon=False, labelcolor=INK
        )
        file = StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
        plt.close(figure)
    return file.getvalue()


def rrhf(axes: Axes) -> None:
    """The ranking loss of two completions over the difference of their log-probabilities."""
    gaps = torch.linspace(-1, 1, 81)
    for margin, colour, dashes in ((0.0, FIRST, "-"), (0.2, SECOND, "--")):
        losses = [
            ranking_loss(
                torch.stack([gap, torch.zeros(())]), torch.tensor([0.0, 1.0]), torch.zeros(2).long(), 1, margin
            )
            for gap in gaps
        ]
        axes.plot(gaps, torch.cat(losses), dashes, color=colour, label=f"margin {margin:g}")
    axes.set_xlabel("p of the worse completion − p of the better one (nats per token)")
    axes.set_ylabel("ranking loss")


def psle(axes: Axes) -> None:
    """The weight of the plain completion, and where pairs are ranked, over the gap in reward."""
    gaps = torch.linspace(-1, 2, 121)
    axes.plot(gaps, sft_weights(torch.zeros_like(gaps), gaps), "-", color=FIRST, label="SFT weight of the plain one")
    axes.plot(gaps, sft_weights(gaps, torch.zeros_like(gaps)), "--", color=SECOND, label="of the guided one")
    threshold = 0.2
    axes.axvspan(threshold, 2, color=INK, alpha=0.15, label="ranked, 1st iteration")
    for _ in range(10):
        threshold = decayed(threshold, 0.9)
    axes.axvline(threshold, color=THIRD, linestyle=":", label="threshold after 10 iterations")
    axes.set_xlabel("reward of the guided completion − that of the plain one, in σ")
    axes.set_ylabel("weight")


def proxy(axes: Axes) -> None:
    """The probability of each candidate, for three probabilities of accepting."""
    logits = torch.tensor([[-1.0, 0.5, 2.0, 0.0]])
    for shift, colour, hatch in ((0.0, FIRST, ""), (2.0, SECOND, "//"), (6.0, THIRD, "..")):
        probabilities = induced_logps(logits + shift, torch.ones(1, 4, dtype=torch.bool)).exp()[0]
        at = torch.arange(4) + 0.25 * (shift / 2 - 1 if shift < 6 else 1)
        name = f"mean acceptance {float((logits + shift).sigmoid().mean()):.2f}"
        axes.bar(at, probabilities, 0.23, color=colour, hatch=hatch, edgecolor="white", label=name)
    axes.set_xticks(range(4), [f"candidate {i + 1}\nlogit {x:g}" for i, x in enumerate(logits[0].tolist())])
    axes.set_ylabel("probability q")


def vas(axes: Axes) -> None:
    """Targets of the value model along a completion whose reward comes at its end."""
    values = torch.tensor([[0.2, 0.3, 0.1, 0.4, 0.6, 0.5, 0.7, 0.9]])
    rewards = torch.zeros_like(values)
    rewards[0, -1] = 1.0
    tokens = range(1, values.shape[1] + 1)
    axes.plot(tokens, values[0], "o:", color=INK, label="value now")
    for lam, colour, dashes in ((1.0, FIRST, "-"), (0.8, SECOND, "--"), (0.0, THIRD, "-.")):
        targets = td_lambda(rewards, values, torch.ones_like(values), 1.0, lam)
        axes.plot(tokens, targets[0], dashes, color=colour, label=f"target, λ = {lam:g}")
    axes.set_xlabel("token")
    axes.set_ylabel("value")


def kl(axes: Axes) -> None:
    """What best-of-n gains at its KL, and the most that any policy can, where rewards are normal."""
    nats = torch.linspace(0, 5, 101)
    axes.plot(nats, (2 * nats).sqrt(), "-", color=FIRST, label="the most that is possible")
    numbers = (1, 2, 4, 8, 16, 32, 64, 128)
    at, gains = [kl_bound(n) for n in numbers], [largest_of(n) for n in numbers]
    axes.plot(at, gains, "s--", color=SECOND, markerfacecolor="none", label="best of n, by n")
    for n, x, y in zip(numbers, at, gains, strict=True):
        axes.annotate(str(n), (x, y), textcoords="offset points", xytext=(6, -12))
    axes.set_xlabel("KL to the base model (nats per completion)")
    axes.set_ylabel("gain in reward, in σ")


def largest_of(n: int) -> float:
    """The expected largest of n standard normal numbers."""
    normal = torch.distributions.Normal(0.0, 1.0)
    x = torch.linspace(-8, 8, 4001, dtype=torch.float64)
    density = n * normal.log_prob(x).exp() * normal.cdf(x) ** (n - 1)
    return float(torch.trapezoid(x * density, x))


PLOTS: dict[str, Callable[[Axes], None]] = {"rrhf": rrhf, "psle": psle, "proxy": proxy, "vas": vas, "kl": kl}
