# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""The equations of RRHF against the same equations written as loops, worked numbers, and what must not change them."""

import math
from itertools import combinations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trl_ext.methods.rrhf.losses import (
    best_completion,
    kendall_tau,
    normalized_logps,
    order,
    pair_accuracy,
    ranking_loss,
    sft_loss,
    worse_better_pairs,
)


# A completion is (sum of log-probs, length, score); few different values, so that ties in p and in scores are common.
completion = st.tuples(
    st.sampled_from([-12.0, -6.0, -5.5, -3.0, -0.25]), st.integers(1, 6), st.sampled_from([-1.0, 0.0, 0.5, 2.0])
)
batches = st.lists(st.lists(completion, min_size=1, max_size=5), min_size=1, max_size=4)


class Batch:
    """Ragged groups as the tensors that the losses take; `order` mixes the completions of the prompts."""

    def __init__(self, groups, order=None):
        rows = [(b, *row) for b, group in enumerate(groups) for row in group]
        rows = rows if order is None else [rows[i] for i in order]
        columns = list(zip(*rows, strict=True))
        self.groups = groups
        self.group = torch.tensor(columns[0])
        self.sums = torch.tensor(columns[1], dtype=torch.float64, requires_grad=True)
        self.lengths = torch.tensor(columns[2], dtype=torch.float64)
        self.scores = torch.tensor(columns[3], dtype=torch.float64)
        self.size = len(groups)

    def p(self, length_penalty=1.0):
        return normalized_logps(self.sums, self.lengths, length_penalty)

    def of(self, prompt):
        return [i for i, b in enumerate(self.group.tolist()) if b == prompt]


def random_batch(seed, prompts=5):
    """Six scores for up to six completions of a prompt, so that ties occur; K from 1 to 6; in no order."""
    generator = torch.Generator().manual_seed(seed)

    def random_integers(high, size):
        return torch.randint(0, high, (size,), generator=generator).tolist()

    groups = []
    for size in random_integers(6, prompts):
        logps = (-20 * torch.rand(size + 1, generator=generator, dtype=torch.float64)).tolist()
        groups.append(
            list(zip(logps, [1 + n for n in random_integers(9, size + 1)], random_integers(6, size + 1), strict=True))
        )
    total = sum(map(len, groups))
    return Batch(groups, torch.randperm(total, generator=generator).tolist())


SEEDS = range(20)


def close(found, expected):
    torch.testing.assert_close(found, torch.as_tensor(expected, dtype=found.dtype), rtol=1e-9, atol=1e-9)


# ----------------------------------------------------------------------------------------------- equations as loops


def test_random_batches_have_what_they_are_for():
    sizes = {len(group) for seed in SEEDS for group in random_batch(seed).groups}
    assert sizes == {1, 2, 3, 4, 5, 6}
    assert any(
        len({score for *_, score in group}) < len(group) for seed in SEEDS for group in random_batch(seed).groups
    )


@pytest.mark.parametrize("length_penalty", [0.0, 0.5, 1.0, 2.0])
def test_eq_1_normalized_logps(length_penalty):
    batch = random_batch(0)
    expected = [s / n**length_penalty for s, n in zip(batch.sums.tolist(), batch.lengths.tolist(), strict=True)]
    close(batch.p(length_penalty), expected)


def test_values_that_differ_by_rounding_are_tied():
    """Equal completions, off by a last bit: every pair counts a half, and there is no tau. A real gap counts."""
    p = torch.full((6,), -3.0) + torch.arange(6) * 3e-7
    scores, group = torch.arange(6.0), torch.zeros(6, dtype=torch.long)
    assert len(p.unique()) > 1
    assert [x.item() for x in pair_accuracy(p, scores, group)] == [7.5, 15.0]
    assert kendall_tau(p, scores, group, 1).isnan().all()
    p = -3.0 + torch.arange(6) * 1e-3
    assert [x.item() for x in pair_accuracy(p, scores, group)] == [15.0, 15.0]
    assert kendall_tau(p, scores, group, 1).item() == pytest.approx(1.0)


def test_the_shortest_completions_are_divided_by_their_length_too():
    lengths = torch.tensor([0, 1, 2])  # one without tokens has log-probability 0
    assert normalized_logps(torch.tensor([0.0, -3.0, -3.0]), lengths).tolist() == [0.0, -3.0, -1.5]


def test_rounding_is_relative_to_the_larger_value():
    assert order(torch.tensor([100.0, 100.0005])).tolist() == [[0, 0], [0, 0]]
    assert order(torch.tensor([0.001, 0.0010001])).tolist() == [[0, -1], [1, 0]]
    assert order(torch.tensor([1e5, 1e5 - 1], dtype=torch.float64)).tolist() == [[0, 0], [0, 0]]  # 1e-5, no more


def test_scores_may_have_another_dtype_than_log_probabilities():
    """Means of rewards are float64; the result has the dtype of p."""
    p, group = torch.tensor([-1.0, -2.0, -3.0]), torch.zeros(3, dtype=torch.long)
    tau = kendall_tau(p, torch.tensor([3.0, 2.0, 1.0], dtype=torch.float64), group, 1)
    assert tau.dtype == torch.float32 and tau.item() == pytest.approx(1.0)


def test_the_best_are_found_where_the_scores_are():
    """A device without data: an operation that mixes it with the CPU is an error."""
    scores, group = torch.empty(4, device="meta"), torch.empty(4, dtype=torch.long, device="meta")
    assert best_completion(scores, group, 2).device.type == "meta"


@pytest.mark.parametrize("margin", [0.0, 0.3])
@pytest.mark.parametrize("seed", SEEDS)
def test_eq_2_ranking_loss_and_its_gradient(seed, margin):
    batch = random_batch(seed)
    losses = []
    for prompt in range(batch.size):
        loss = batch.sums.sum() * 0
        for i in batch.of(prompt):
            for j in batch.of(prompt):
                if batch.scores[i] < batch.scores[j]:
                    loss = loss + torch.relu(batch.p()[i] - batch.p()[j] + margin)
        losses.append(loss)
    expected = torch.stack(losses)
    found = ranking_loss(batch.p(), batch.scores, batch.group, batch.size, margin)
    close(found, expected.detach())
    weights = torch.arange(1.0, batch.size + 1, dtype=torch.float64)
    (grad,) = torch.autograd.grad((found * weights).sum(), batch.sums)
    (expected_grad,) = torch.autograd.grad((expected * weights).sum(), batch.sums)
    close(grad, expected_grad)


@pytest.mark.parametrize("seed", SEEDS)
def test_eq_3_best_completion_is_the_first_of_the_best(seed):
    batch = random_batch(seed)
    expected = []
    for prompt in range(batch.size):
        best = None
        for i in batch.of(prompt):
            if best is None or batch.scores[i] > batch.scores[best]:
                best = i
        expected.append(best)
    assert best_completion(batch.scores, batch.group, batch.size).tolist() == expected


@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("seed", SEEDS)
def test_eq_4_sft_loss_and_its_gradient(seed, reduction):
    batch = random_batch(seed)
    best = best_completion(batch.scores, batch.group, batch.size)
    expected = []
    expected_grad = torch.zeros_like(batch.sums)
    for i in best.tolist():
        length = batch.lengths[i].item() if reduction == "mean" else 1
        expected.append(-batch.sums[i].item() / length)
        expected_grad[i] = -1 / length
    loss = sft_loss(batch.sums, batch.lengths, best, reduction)
    close(loss, expected)
    (grad,) = torch.autograd.grad(loss.sum(), batch.sums)
    close(grad, expected_grad)


@pytest.mark.parametrize("seed", SEEDS)
def test_pair_accuracy_as_loops(seed):
    batch = random_batch(seed)
    p = batch.p().detach()
    p = torch.where(torch.arange(len(p)) % 3 == 0, p[0], p)  # ties in p as well
    right = pairs = 0
    for i, j in combinations(range(len(p)), 2):
        if batch.group[i] == batch.group[j] and batch.scores[i] != batch.scores[j]:
            better, worse = (i, j) if batch.scores[i] > batch.scores[j] else (j, i)
            pairs += 1
            right += 1 if p[better] > p[worse] else 0.5 if p[better] == p[worse] else 0
    found = pair_accuracy(p, batch.scores, batch.group)
    assert (found[0].item(), found[1].item()) == (right, pairs)


def tau_b(p, scores):
    """Kendall's tau-b by its definition: (P - Q) / sqrt((P + Q + X0) (P + Q + Y0))."""
    concordant = discordant = only_p = only_scores = 0
    for i, j in combinations(range(len(p)), 2):
        product = (p[i] - p[j]) * (scores[i] - scores[j])
        if product > 0:
            concordant += 1
        elif product < 0:
            discordant += 1
        elif p[i] != p[j]:
            only_p += 1
        elif scores[i] != scores[j]:
            only_scores += 1
    untied = concordant + discordant
    below = math.sqrt((untied + only_p) * (untied + only_scores))
    return (concordant - discordant) / below if below else math.nan


@pytest.mark.parametrize("seed", SEEDS)
def test_kendall_tau_as_loops(seed):
    batch = random_batch(seed)
    p = batch.p().detach()
    p = torch.where(torch.arange(len(p)) % 3 == 0, p[0], p)
    expected = [tau_b(p[batch.of(b)].tolist(), batch.scores[batch.of(b)].tolist()) for b in range(batch.size)]
    found = kendall_tau(p, batch.scores, batch.group, batch.size)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=found.dtype), equal_nan=True)


# --------------------------------------------------------------------------------------------------- worked numbers


def test_worked_ranking_loss():
    # p = (-1, -2, -0.5), r = (0, 1, 2): violated by (worse, better) = (0, 1), by 1; (0, 2) and (1, 2) are in order.
    p = torch.tensor([-1.0, -2.0, -0.5], requires_grad=True)
    scores, group = torch.tensor([0.0, 1.0, 2.0]), torch.zeros(3, dtype=torch.long)
    loss = ranking_loss(p, scores, group, 1)
    loss.backward()
    assert loss.tolist() == [1.0]
    assert p.grad.tolist() == [1.0, -1.0, 0.0]  # a step down lowers the worse answer and raises the better one


def test_worked_margin():
    # with margin 0.75 (0, 2) is violated by 0.25 as well; (1, 2), apart by 1.5, is not
    p = torch.tensor([-1.0, -2.0, -0.5], requires_grad=True)
    loss = ranking_loss(p, torch.tensor([0.0, 1.0, 2.0]), torch.zeros(3, dtype=torch.long), 1, margin=0.75)
    loss.backward()
    assert loss.tolist() == [2.0]
    assert p.grad.tolist() == [2.0, -1.0, -1.0]


def test_worked_sft_loss_raises_the_best_alone():
    sums = torch.tensor([-4.0, -6.0, -1.0], requires_grad=True)
    lengths, best = torch.tensor([2, 3, 1]), torch.tensor([1])
    loss = sft_loss(sums, lengths, best)
    loss.sum().backward()
    assert loss.tolist() == [2.0]
    torch.testing.assert_close(sums.grad, torch.tensor([0.0, -1 / 3, 0.0]))
    assert sft_loss(sums, lengths, best, "sum").tolist() == [6.0]


def test_length_normalisation_changes_the_order():
    # The paper's point of Eq. (1): -6 over 6 tokens is likelier a token than -4 over 2.
    sums, lengths = torch.tensor([-6.0, -4.0]), torch.tensor([6, 2])
    assert normalized_logps(sums, lengths).tolist() == [-1.0, -2.0]
    assert normalized_logps(sums, lengths, 0.0).tolist() == [-6.0, -4.0]


def test_one_completion_has_no_pairs():
    p, scores, group = torch.tensor([-1.0]), torch.tensor([3.0]), torch.tensor([0])
    assert ranking_loss(p, scores, group, 1).tolist() == [0.0]
    assert best_completion(scores, group, 1).tolist() == [0]
    assert [x.item() for x in pair_accuracy(p, scores, group)] == [0.0, 0.0]
    assert kendall_tau(p, scores, group, 1).isnan().all()


def test_tied_scores_are_no_pair():
    p = torch.tensor([-1.0, -2.0, -3.0], requires_grad=True)
    scores, group = torch.tensor([1.0, 1.0, 1.0]), torch.zeros(3, dtype=torch.long)
    loss = ranking_loss(p, scores, group, 1, margin=5.0)
    loss.sum().backward()
    assert loss.tolist() == [0.0]
    assert p.grad.tolist() == [0.0, 0.0, 0.0]
    assert best_completion(scores, group, 1).tolist() == [0]
    assert not worse_better_pairs(scores, group).any()


def test_completions_of_different_prompts_are_no_pair():
    p, scores = torch.tensor([-1.0, -2.0]), torch.tensor([0.0, 1.0])
    assert ranking_loss(p, scores, torch.tensor([0, 1]), 2).tolist() == [0.0, 0.0]
    assert pair_accuracy(p, scores, torch.tensor([0, 1]))[1] == 0
    assert ranking_loss(p, scores, torch.tensor([0, 0]), 1).tolist() == [1.0]


def test_negative_scores_have_a_best():
    scores, group = torch.tensor([-9.0, -3.0, -1e30, -2e30]), torch.tensor([0, 0, 1, 1])
    assert best_completion(scores, group, 2).tolist() == [1, 2]


@pytest.mark.parametrize(
    ("p", "scores", "tau"),
    [
        ([1.0, 2.0, 3.0], [5.0, 6.0, 7.0], 1.0),
        ([1.0, 2.0, 3.0], [7.0, 6.0, 5.0], -1.0),
        ([1.0, 2.0, 3.0], [0.0, 0.0, 1.0], 2 / math.sqrt(3 * 2)),  # one pair tied in the scores
        ([1.0, 1.0, 2.0, 2.0], [0.0, 1.0, 0.0, 1.0], 0.0),
        ([1.0, 1.0, 1.0], [0.0, 1.0, 2.0], math.nan),
    ],
)
def test_worked_kendall_tau(p, scores, tau):
    found = kendall_tau(torch.tensor(p), torch.tensor(scores), torch.zeros(len(p), dtype=torch.long), 1)
    assert found.tolist() == pytest.approx([tau], nan_ok=True)


# ------------------------------------------------------------------------------------------------------ invariances


def measures(batch):
    p = batch.p()
    best = best_completion(batch.scores, batch.group, batch.size)
    return {
        "rank": ranking_loss(p, batch.scores, batch.group, batch.size, 0.1),
        "best score": batch.scores[best],
        "pairs": torch.stack(pair_accuracy(p, batch.scores, batch.group)),
        "tau": kendall_tau(p, batch.scores, batch.group, batch.size),
    }


def same(found, expected):
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-9, atol=1e-9, equal_nan=True, msg=name)


@settings(max_examples=60)
@given(batches, st.randoms(use_true_random=False))
def test_order_of_completions_does_not_matter(groups, random):
    order = list(range(sum(map(len, groups))))
    random.shuffle(order)
    same(measures(Batch(groups, order)), measures(Batch(groups)))


@settings(max_examples=60)
@given(batches, batches)
def test_batches_can_be_split(first, second):
    one, two, both = (measures(Batch(groups)) for groups in (first, second, first + second))
    split = {name: torch.cat([one[name], two[name]]) for name in ("rank", "best score", "tau")}
    same(both, split | {"pairs": one["pairs"] + two["pairs"]})


@settings(max_examples=60)
@given(batches)
def test_only_the_order_of_scores_matters(groups):
    stretched = [[(logp, length, math.exp(3 * score) - 7) for logp, length, score in group] for group in groups]
    expected = measures(Batch(groups))
    found = measures(Batch(stretched))
    best = [best_completion(batch.scores, batch.group, batch.size) for batch in (Batch(groups), Batch(stretched))]
    assert best[0].tolist() == best[1].tolist()
    same({**found, "best score": expected["best score"]}, expected)


@settings(max_examples=60)
@given(batches)
def test_ranking_loss_is_zero_where_the_order_is_right(groups):
    ordered = [[(float(score), 1, score) for *_, score in group] for group in groups]
    batch = Batch(ordered)
    loss = ranking_loss(batch.p(), batch.scores, batch.group, batch.size)
    assert loss.tolist() == [0.0] * batch.size
    right, pairs = pair_accuracy(batch.p(), batch.scores, batch.group)
    assert right == pairs


@settings(max_examples=60)
@given(batches)
def test_a_step_down_the_ranking_loss_never_raises_it(groups):
    batch = Batch(groups)
    loss = ranking_loss(batch.p(), batch.scores, batch.group, batch.size).sum()
    (grad,) = torch.autograd.grad(loss, batch.sums)
    batch.sums = (batch.sums - 1e-3 * grad).detach()
    after = ranking_loss(batch.p(), batch.scores, batch.group, batch.size).sum()
    assert after < loss if loss > 0 else after == 0
