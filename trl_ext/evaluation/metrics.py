# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Statistics of completions, each with its standard error over prompts. Nothing here knows a model.

Completions of one prompt resemble each other, so the prompt is the independent draw: where a function takes a list of
lists, the outer one is over prompts and the inner one over a prompt's completions.
"""

import math
from collections import Counter
from collections.abc import Iterator, Sequence

import torch


def mean_and_se(values: Sequence[Sequence[float]]) -> tuple[float, float]:
    """
    Mean over prompts of the mean over a prompt's completions, and its standard error.

    The standard error is the sample standard deviation of the prompts' means (divisor `n - 1`) over `sqrt(n)`. NaN
    values are left out, and so are prompts that have no other. NaN is returned for the mean of no prompt and for the
    standard error of fewer than two.

    Args:
        values (`Sequence[Sequence[float]]`): A number for each completion of each prompt.
    """
    kept = ([value for value in row if not math.isnan(value)] for row in values)
    means = torch.tensor([sum(row) / len(row) for row in kept if row], dtype=torch.float64)
    if len(means) < 2:
        return (means.item() if len(means) else math.nan), math.nan
    return means.mean().item(), (means.std() / math.sqrt(len(means))).item()


def jackknife_se(leave_one_out: Sequence[float]) -> float:
    """
    Jackknife standard error of a statistic, `sqrt((n - 1) / n * sum((x_i - mean x)^2))`; NaN for `n < 2`.

    Args:
        leave_one_out (`Sequence[float]`): The statistic of the sample without its i-th member, for every i.
    """
    x = torch.tensor(leave_one_out, dtype=torch.float64)
    if len(x) < 2:
        return math.nan
    return ((len(x) - 1) / len(x) * (x - x.mean()).square().sum()).sqrt().item()


def distinct_n(completions: Sequence[Sequence[int]], n: int = 2) -> float:
    """
    Distinct n-grams over all n-grams of all completions together (arXiv 1510.03055); NaN if there is no n-gram.

    The n-grams are of token ids, the end token included, and do not cross from one completion to the next. More
    completions repeat more: compare only figures of equally many completions of a like length.
    """
    ngrams = [ngram for ids in completions for ngram in _ngrams(ids, n)]
    return len(set(ngrams)) / len(ngrams) if ngrams else math.nan


def distinct_n_and_se(completions: Sequence[Sequence[Sequence[int]]], n: int = 2) -> tuple[float, float]:
    """
    [`distinct_n`] of the completions of all prompts, and its jackknife standard error over prompts.

    A bootstrap would not do here: a prompt that is drawn twice repeats itself and pushes the figure down.
    """
    ngrams = [[ngram for ids in rows for ngram in _ngrams(ids, n)] for rows in completions]
    prompts_with = Counter(ngram for rows in ngrams for ngram in set(rows))
    distinct, total = len(prompts_with), sum(map(len, ngrams))
    if not total:
        return math.nan, math.nan
    # Without a prompt, its n-grams that no other prompt has are gone from the numerator.
    own = [sum(prompts_with[ngram] == 1 for ngram in set(rows)) for rows in ngrams]
    without = [
        (distinct - gone) / (total - len(rows)) if total > len(rows) else math.nan
        for gone, rows in zip(own, ngrams, strict=True)
    ]
    return distinct / total, jackknife_se(without)


def _ngrams(ids: Sequence[int], n: int) -> Iterator[tuple[int, ...]]:
    return zip(*(ids[start:] for start in range(n)), strict=False)


def perplexity_and_se(logps: Sequence[Sequence[torch.Tensor]]) -> tuple[float, float]:
    """
    `exp(-sum log p / number of tokens)` over the tokens of all completions, and its jackknife error over prompts.

    Args:
        logps (`Sequence[Sequence[torch.Tensor]]`): Token log-probabilities `(T,)` of each completion of each prompt.

    NaN is returned if there is no token at all.
    """
    nll = torch.tensor([-sum(x.double().sum().item() for x in rows) for rows in logps], dtype=torch.float64)
    tokens = torch.tensor([sum(len(x) for x in rows) for rows in logps], dtype=torch.float64)
    without = torch.exp((nll.sum() - nll) / (tokens.sum() - tokens))
    return torch.exp(nll.sum() / tokens.sum()).item(), jackknife_se(without.tolist())


def response_kl(logps: Sequence[torch.Tensor], base_logps: Sequence[torch.Tensor]) -> list[float]:
    """
    `sum_t log pi(y_t) - log pi_0(y_t)` of each response, in nats.

    Its mean over responses drawn from `pi` itself, neither heated nor truncated, estimates `KL(pi || pi_0)` without
    bias. A single one may be negative, their mean over few responses as well.

    Args:
        logps (`Sequence[torch.Tensor]`): Token log-probabilities `(T,)` of each response under `pi`.
        base_logps (`Sequence[torch.Tensor]`): The same under the base model `pi_0`.
    """
    return [(x.double() - y.double()).sum().item() for x, y in zip(logps, base_logps, strict=True)]
