# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Statistics of completions, each with its standard error over prompts.

Completions of one prompt are not independent of each other, so prompts are the units of sampling. If a function takes
a list of lists, the outer list is over prompts and the inner one over the completions of a prompt.
"""

import math
from collections import Counter
from collections.abc import Iterator, Sequence

import torch


def mean_and_se(values: Sequence[Sequence[float]]) -> tuple[float, float]:
    """
    Mean over prompts of the mean over a prompt's completions, and its standard error.

    The standard error is the sample standard deviation of the prompts' means (divisor `n - 1`) over `sqrt(n)`. NaN
    values are ignored, and so are prompts that have only NaN.

    Args:
        values (`Sequence[Sequence[float]]`): A number for each completion of each prompt.

    Returns:
        `tuple[float, float]`: The mean, NaN without prompts, and the standard error, NaN for fewer than two prompts.
    """
    means = torch.tensor([mean for mean in map(_mean, values) if not math.isnan(mean)], dtype=torch.float64)
    if len(means) < 2:
        return (means.item() if len(means) else math.nan), math.nan
    return means.mean().item(), (means.std() / math.sqrt(len(means))).item()


def finite(value: float) -> float | None:
    """A number, or `None` where it is not finite, because JSON has no other."""
    return value if math.isfinite(value) else None


def paired_difference(values: Sequence[Sequence[float]], others: Sequence[Sequence[float]]) -> tuple[float, float]:
    """
    Mean over prompts of the difference between two policies' means for the same prompt, and its standard error.

    The difference between prompts cancels, so the standard error is smaller than that of two separate means. A prompt
    without a number on either side is ignored.

    Args:
        values (`Sequence[Sequence[float]]`): A number for each completion of each prompt.
        others (`Sequence[Sequence[float]]`): The same of the other policy, in other numbers if need be.
    """
    pairs = zip(map(_mean, values), map(_mean, others), strict=True)
    return mean_and_se([[value - other] for value, other in pairs])


def _mean(row: Sequence[float]) -> float:
    kept = [value for value in row if not math.isnan(value)]
    return sum(kept) / len(kept) if kept else math.nan


def jackknife_se(leave_one_out: Sequence[float]) -> float:
    """
    Jackknife standard error of a statistic, `sqrt((n - 1) / n * sum((x_i - mean x)^2))`; NaN for `n < 2`.

    Args:
        leave_one_out (`Sequence[float]`): The values `x_i`: the statistic of the sample without its i-th member.
    """
    x = torch.tensor(leave_one_out, dtype=torch.float64)
    if len(x) < 2:
        return math.nan
    return ((len(x) - 1) / len(x) * (x - x.mean()).square().sum()).sqrt().item()


def distinct_n(completions: Sequence[Sequence[int]], n: int = 2) -> float:
    """
    Number of distinct n-grams divided by the number of all n-grams of the completions (arXiv 1510.03055).

    The n-grams are of token ids, including the end-of-sequence token, within a completion. The value falls with the
    number and length of the completions: compare only values for equal numbers of completions of similar length.

    Args:
        completions (`Sequence[Sequence[int]]`): Token ids of each completion.
        n (`int`, *optional*, defaults to `2`): Length of the n-grams.

    Returns:
        `float`: Between 0 and 1; NaN if there are no n-grams.
    """
    ngrams = [ngram for ids in completions for ngram in _ngrams(ids, n)]
    return len(set(ngrams)) / len(ngrams) if ngrams else math.nan


def distinct_n_and_se(completions: Sequence[Sequence[Sequence[int]]], n: int = 2) -> tuple[float, float]:
    """
    [`distinct_n`] of the completions of all prompts, and its jackknife standard error over prompts.

    A bootstrap would be biased here: a prompt that is sampled twice repeats its n-grams, which lowers the value.

    Args:
        completions (`Sequence[Sequence[Sequence[int]]]`): Token ids of each completion of each prompt.
        n (`int`, *optional*, defaults to `2`): Length of the n-grams.

    Returns:
        `tuple[float, float]`: The value and its standard error, NaN where they are undefined.
    """
    ngrams = [[ngram for ids in rows for ngram in _ngrams(ids, n)] for rows in completions]
    prompts_with = Counter(ngram for rows in ngrams for ngram in set(rows))
    distinct, total = len(prompts_with), sum(map(len, ngrams))
    if not total:
        return math.nan, math.nan
    # Leaving out a prompt removes from the numerator the n-grams that no other prompt has.
    own = [sum(prompts_with[ngram] == 1 for ngram in set(rows)) for rows in ngrams]
    without = [
        (distinct - removed) / (total - len(rows)) if total > len(rows) else math.nan
        for removed, rows in zip(own, ngrams, strict=True)
    ]
    return distinct / total, jackknife_se(without)


def _ngrams(ids: Sequence[int], n: int) -> Iterator[tuple[int, ...]]:
    return zip(*(ids[start:] for start in range(n)), strict=False)


def perplexity_and_se(logps: Sequence[Sequence[torch.Tensor]]) -> tuple[float, float]:
    """
    `exp(-sum log p / number of tokens)` over the tokens of all completions, and its jackknife error over prompts.

    Args:
        logps (`Sequence[Sequence[torch.Tensor]]`): Token log-probabilities `(T,)` of each completion of each prompt.

    Returns:
        `tuple[float, float]`: The perplexity and its standard error; NaN if there are no tokens.
    """
    nll = torch.tensor([-sum(x.double().sum().item() for x in rows) for rows in logps], dtype=torch.float64)
    tokens = torch.tensor([sum(len(x) for x in rows) for rows in logps], dtype=torch.float64)
    without = torch.exp((nll.sum() - nll) / (tokens.sum() - tokens))
    return torch.exp(nll.sum() / tokens.sum()).item(), jackknife_se(without.tolist())


def response_kl(logps: Sequence[torch.Tensor], base_logps: Sequence[torch.Tensor]) -> list[float]:
    """
    `sum_t log pi(y_t) - log pi_0(y_t)` of each response, in nats.

    The mean over responses sampled from `pi` at temperature 1, without top-k or top-p, is an unbiased estimate of
    `KL(pi || pi_0)`. The value of a single response may be negative, and so may the mean of few.

    Args:
        logps (`Sequence[torch.Tensor]`): Token log-probabilities `(T,)` of each response under `pi`.
        base_logps (`Sequence[torch.Tensor]`): The same under the base model `pi_0`.
    """
    return [(x.double() - y.double()).sum().item() for x, y in zip(logps, base_logps, strict=True)]
