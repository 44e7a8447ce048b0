# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""The losses of PSLE, slow and plain: for the tests of the losses and of the trainer."""

import math


def oracle(logps, rewards, marks, threshold, margin=0.0, temperature=1.0, two_sided=False, rank=1.0, sft=1.0):
    """The method as plain Python, a prompt and a pair at a time -> a list with the loss of each prompt."""
    result = []
    for l, r, views in zip(logps, rewards, marks, strict=True):
        terms = []
        for i, view in enumerate(views):
            if view != 0:
                continue
            for j, other in enumerate(views):
                if other != 1:
                    continue
                gap = r[j] - r[i]
                if gap > threshold:
                    terms.append(rank * max(0.0, l[i] - l[j] + margin))
                elif two_sided and -gap > threshold:
                    terms.append(rank * max(0.0, l[j] - l[i] + margin))
                else:
                    a, b = math.exp(r[i] / temperature), math.exp(r[j] / temperature)
                    w = a / (a + b)
                    terms.append(-sft * (w * l[i] + (1 - w) * l[j]))
        result.append(sum(terms) / len(terms) if terms else 0.0)
    return result
