# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""The ranking losses of other papers against loops over one prompt, worked numbers, and what must not change them."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles.ranking import ORACLES
from torch.nn.functional import logsigmoid, softplus

from trl_ext.methods.rrhf import ranking_losses
from trl_ext.methods.rrhf.ranking_losses import (
    lambda_loss,
    listnet_loss,
    listwise_dpo_loss,
    plackett_luce_loss,
    pro_loss,
    qrpo_loss,
    slic_loss,
)
from trl_ext.methods.rrhf.ranking_registry import OWN, Ranking


NAMES = list(OWN)
COMPARING = [name for name in NAMES if not OWN[name].is_pointwise]
SEEDS = range(12)
LN2 = math.log(2)

# A completion is (p, score); few different values, so that ties in both are common.
completion = st.tuples(st.sampled_from([-3.0, -1.5, -1.25, 0.0, 0.75]), st.sampled_from([-1.0, 0.0, 0.5, 2.0]))
batches = st.lists(st.lists(completion, min_size=1, max_size=5), min_size=1, max_size=4)


def ranking_of(name, **numbers):
    """A loss with other numbers than its own."""
    member = OWN[name]
    return Ranking(member, **{"beta": member.beta, "margin": member.margin, "length_penalty": 1.0} | numbers)


def tensors(groups, order=None):
    """p, scores and groups of a batch; `order` mixes the completions of the prompts."""
    rows = [(b, *row) for b, group in enumerate(groups) for row in group]
    rows = rows if order is None else [rows[i] for i in order]
    group, p, scores = zip(*rows, strict=True)
    p = torch.tensor(p, dtype=torch.float64, requires_grad=True)
    return p, torch.tensor(scores, dtype=torch.float64), torch.tensor(group)


def loss_of(name, groups, order=None, **numbers):
    p, scores, group = tensors(groups, order)
    return ranking_of(name, **numbers)(p, scores, group, len(groups)), p


def random_groups(seed):
    """One to six completions of each of five prompts, with scores of six values."""
    generator = torch.Generator().manual_seed(seed)
    sizes = 1 + torch.randint(0, 6, (5,), generator=generator)
    return [
        list(
            zip(
                (-3 * torch.rand(int(size), generator=generator, dtype=torch.float64)).tolist(),
                torch.randint(-2, 4, (int(size),), generator=generator).tolist(),
                strict=True,
            )
        )
        for size in sizes
    ]


# ----------------------------------------------------------------------------------------------- equations as loops


@pytest.mark.parametrize("beta", [None, 0.7])
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", NAMES)
def test_loss_and_gradient_are_those_of_the_loops(name, seed, beta):
    """With the loss's own beta and another one, and for losses with a margin with 0.3 too."""
    groups, member = random_groups(seed), OWN[name]
    numbers = {} if beta is None else {"beta": member.beta and beta, "margin": None if member.margin is None else 0.3}
    found, p = loss_of(name, groups, **numbers)
    given = {key: numbers.get(key, getattr(member, key)) for key in ("beta", "margin")}
    given = {key: value for key, value in given.items() if value is not None}
    expected_p = p.detach().clone().requires_grad_()
    losses, start = [], 0
    for group in groups:
        own = list(expected_p[start : start + len(group)])
        losses.append(ORACLES[name](own, [score for _, score in group], **given))
        start += len(group)
    expected = torch.stack(losses)
    torch.testing.assert_close(found, expected.detach(), rtol=1e-9, atol=1e-9)
    weights = torch.arange(1.0, len(groups) + 1, dtype=torch.float64)
    (grad,) = torch.autograd.grad((found * weights).sum(), p)
    (expected_grad,) = torch.autograd.grad((expected * weights).sum(), expected_p)
    torch.testing.assert_close(grad, expected_grad, rtol=1e-9, atol=1e-9)


def test_random_groups_have_what_they_are_for():
    groups = [group for seed in SEEDS for group in random_groups(seed)]
    assert {len(group) for group in groups} == {1, 2, 3, 4, 5, 6}
    assert any(len({score for _, score in group}) < len(group) for group in groups)


# --------------------------------------------------------------------------------------------------- worked numbers


def one_prompt(p, scores):
    p = torch.tensor(p, dtype=torch.float64, requires_grad=True)
    return p, torch.tensor(scores, dtype=torch.float64), torch.zeros(len(scores), dtype=torch.long), 1


def test_worked_plackett_luce():
    # exp(p) = 1, 2, 4 with the first the best: P = 1/7 * 2/6
    batch = one_prompt([0.0, LN2, 2 * LN2], [3.0, 2.0, 1.0])
    loss = plackett_luce_loss(*batch)
    loss.backward()
    assert loss.item() == pytest.approx(math.log(7) + math.log(3))
    # gradient: share of exp(p) in each place, minus 1 for the one that is chosen there
    expected = [1 / 7 - 1, 2 / 7 + 1 / 3 - 1, 4 / 7 + 2 / 3 + 1 - 1]
    assert batch[0].grad.tolist() == pytest.approx(expected)
    # the two best are tied: each against the worst alone, 1/5 and 2/6
    tied = one_prompt([0.0, LN2, 2 * LN2], [3.0, 3.0, 1.0])
    assert plackett_luce_loss(*tied).item() == pytest.approx(math.log(5) + math.log(3))


def test_worked_listwise_dpo_is_dpo_for_two_completions():
    # beta 0.1, log-ratios 3 and -2: -log sigmoid(0.1 * 5) = 0.4741
    batch = one_prompt([3.0, -2.0], [1.0, 0.0])
    loss = listwise_dpo_loss(*batch)
    assert loss.item() == pytest.approx(-logsigmoid(torch.tensor(0.5)).item(), abs=1e-6)
    assert loss.item() == pytest.approx(0.4741, abs=1e-4)


def test_worked_listnet():
    # targets softmax(0, ln 3) = 1/4, 3/4; the model's softmax(ln 2, 0) = 2/3, 1/3
    batch = one_prompt([LN2, 0.0], [0.0, math.log(3)])
    loss = listnet_loss(*batch)
    loss.backward()
    assert loss.item() == pytest.approx(-(math.log(2 / 3) / 4 + 3 * math.log(1 / 3) / 4))
    assert batch[0].grad.tolist() == pytest.approx([2 / 3 - 1 / 4, 1 / 3 - 3 / 4])


def test_worked_lambda():
    """
    Scores ln 3 apart: the better wins with probability 3/4, so psi = (1/2 + 3/4) / 2 = 5/8 and 3/8. beta 1, p equal:
    the worse is ranked first, at 1 / ln 2, the better at 1 / ln 3, and the logistic loss is ln 2.
    """
    batch = one_prompt([-1.0, -1.0], [0.0, math.log(3)])
    loss = lambda_loss(*batch, beta=1.0)
    loss.backward()
    weight = (2 ** (5 / 8) - 2 ** (3 / 8)) * (1 / LN2 - 1 / math.log(3))
    assert weight == pytest.approx((1.5422 - 1.2968) * (1.4427 - 0.9102), abs=1e-4)
    assert loss.item() == pytest.approx(weight * LN2)
    assert batch[0].grad.tolist() == pytest.approx([weight / 2, -weight / 2])  # the weight has no gradient


def test_worked_slic():
    # margin 1: the better is ahead by 0.25, so 0.75 is missing
    batch = one_prompt([-1.0, -1.25], [1.0, 0.0])
    loss = slic_loss(*batch)
    loss.backward()
    assert loss.item() == 0.75
    assert batch[0].grad.tolist() == [-1.0, 1.0]
    assert slic_loss(*one_prompt([-1.0, -2.25], [1.0, 0.0])).item() == 0.0


def test_worked_pro():
    """
    Scores 3, 1, 0: the best has 1/T = 2 and 3 to the others and 3 (the greatest) itself, the second 1 and 1.
    p = -1, 0, 0: -log(e^-3 / (e^-3 + 1 + 1)) - log(1 / (1 + 1)).
    """
    batch = one_prompt([-1.0, 0.0, 0.0], [3.0, 1.0, 0.0])
    loss = pro_loss(*batch)
    loss.backward()
    share = math.exp(-3) / (math.exp(-3) + 2)
    assert loss.item() == pytest.approx(-math.log(share) + LN2)
    rival = 1 / (math.exp(-3) + 2)
    assert batch[0].grad.tolist() == pytest.approx([3 * (share - 1), 2 * rival - 1 / 2, 3 * rival + 1 / 2])


def test_worked_qrpo():
    """beta 1: Z = e - 1. Quantiles 1/2 and 1 with log-ratio 0: the better is raised, the worse lowered."""
    batch = one_prompt([0.0, 0.0], [0.0, 5.0])
    loss = qrpo_loss(*batch, beta=1.0)
    loss.backward()
    log_z = math.log(math.e - 1)  # 0.5413
    assert loss.item() == pytest.approx(((0.5 - log_z) ** 2 + (1 - log_z) ** 2) / 2)
    assert batch[0].grad.tolist() == pytest.approx([log_z - 0.5, log_z - 1])
    # at the optimum, pi / pi_0 = exp(R / beta) / Z, the loss is 0
    assert qrpo_loss(*one_prompt([0.5 - log_z, 1 - log_z], [0.0, 5.0]), beta=1.0).item() == pytest.approx(0, abs=1e-12)


def test_qrpo_has_no_overflow_for_a_small_beta():
    """exp(1 / 0.001) is no float64. beta * log Z = beta * log(beta) + 1."""
    loss = qrpo_loss(*one_prompt([0.0], [1.0]), beta=1e-3)
    assert loss.item() == pytest.approx((1e-3 * math.log(1e-3)) ** 2)


# ------------------------------------------------------------------------------------------------------ gradients


@pytest.mark.parametrize("name", NAMES)
def test_a_step_down_raises_the_best_and_lowers_the_worst(name):
    """From equal p, as at the start of training with a reference."""
    loss, p = loss_of(name, [[(0.0, 2.0), (0.0, 1.0), (0.0, 0.0)]], **({"margin": 1.0} if name == "rrhf" else {}))
    loss.sum().backward()
    assert p.grad[0] < 0 < p.grad[2]


@pytest.mark.parametrize("name", NAMES)
def test_descent_ends_in_the_order_of_the_scores(name):
    """From the wrong order, with beta 1; p is below 0 as a log-probability is, unless the loss takes a log-ratio."""
    scores, member = torch.tensor([1.0, 3.0, 0.0, 2.0]), OWN[name]
    x = torch.tensor([0.0, 1.0, -0.5, 0.5], requires_grad=True)
    ranking = ranking_of(name, beta=member.beta and 1.0, margin=None if member.margin is None else 0.5)
    optimizer = torch.optim.Adam([x], lr=0.05)
    for _ in range(400):
        optimizer.zero_grad()
        p = -x if member.needs_reference else -softplus(x)
        ranking(p, scores, torch.zeros(4, dtype=torch.long), 1).sum().backward()
        optimizer.step()
    assert p.argsort().tolist() == [2, 0, 3, 1]


# ------------------------------------------------------------------------------------------------------ invariances


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=25)
@given(groups=batches, random=st.randoms(use_true_random=False))
def test_order_of_completions_does_not_matter(name, groups, random):
    order = list(range(sum(map(len, groups))))
    random.shuffle(order)
    mixed, p_mixed = loss_of(name, groups, order)
    plain, p = loss_of(name, groups)
    torch.testing.assert_close(mixed, plain, rtol=1e-9, atol=1e-9)
    (grad,) = torch.autograd.grad(plain.sum(), p)
    (mixed_grad,) = torch.autograd.grad(mixed.sum(), p_mixed)
    torch.testing.assert_close(mixed_grad, grad[order], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=25)
@given(first=batches, second=batches)
def test_batches_can_be_split(name, first, second):
    both = loss_of(name, first + second)[0]
    split = torch.cat([loss_of(name, first)[0], loss_of(name, second)[0]])
    torch.testing.assert_close(both, split, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", COMPARING)
def test_one_completion_has_no_loss(name):
    loss, p = loss_of(name, [[(-1.0, 3.0)], [(-2.0, 0.0)]])
    loss.sum().backward()
    assert loss.tolist() == pytest.approx([0.0, 0.0], abs=1e-12)
    assert p.grad.tolist() == pytest.approx([0.0, 0.0], abs=1e-12)


def test_qrpo_raises_a_single_completion():
    loss, p = loss_of("qrpo", [[(0.0, 3.0)]])
    loss.sum().backward()
    assert loss.item() > 0 > p.grad.item()


@pytest.mark.parametrize("name", [name for name in COMPARING if name != "listnet"])
def test_tied_scores_add_nothing(name):
    loss, p = loss_of(name, [[(-1.0, 1.0), (-2.0, 1.0), (-0.5, 1.0)]])
    loss.sum().backward()
    assert loss.item() == pytest.approx(0.0, abs=1e-12)
    assert p.grad.tolist() == pytest.approx([0.0] * 3, abs=1e-12)


def test_listnet_makes_tied_completions_equally_likely():
    loss, p = loss_of("listnet", [[(-1.0, 1.0), (-2.0, 1.0)]])
    loss.sum().backward()
    assert p.grad[0] > 0 > p.grad[1]
    equal, p = loss_of("listnet", [[(-1.0, 1.0), (-1.0, 1.0)]])
    equal.sum().backward()
    assert equal.item() == pytest.approx(LN2)  # the entropy of the targets
    assert p.grad.tolist() == pytest.approx([0.0, 0.0])


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("listnet", "lambda", "pro")])
@settings(max_examples=25)
@given(groups=batches)
def test_losses_that_use_the_order_of_scores_only(name, groups):
    stretched = [[(p, math.exp(3 * score) - 7) for p, score in group] for group in groups]
    torch.testing.assert_close(loss_of(name, stretched)[0], loss_of(name, groups)[0])


@pytest.mark.parametrize("name", NAMES)
def test_extreme_values_are_finite(name):
    """Sums over long completions, and scores of any scale."""
    loss, p = loss_of(name, [[(-5e3, 1e4), (-10.0, -1e4), (-2e3, 0.0)]])
    loss.sum().backward()
    assert loss.isfinite().all() and p.grad.isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_scores_may_be_of_another_dtype(name):
    """p of a model in half precision, scores in float32."""
    p, scores, group = tensors(random_groups(0))
    expected = ranking_of(name)(p.float(), scores.float(), group, 5)
    found = ranking_of(name)(p.bfloat16(), scores.float(), group, 5)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), expected, rtol=0.1, atol=0.1)


def test_betas_are_those_of_the_papers():
    p, scores, group = (
        torch.tensor([-1.0, -2.0, -4.0]),
        torch.tensor([0.0, 2.0, 1.0]),
        torch.zeros(3, dtype=torch.long),
    )
    for loss, beta in ((ranking_losses.lambda_loss, 0.05), (ranking_losses.qrpo_loss, 0.1)):
        assert torch.equal(loss(p, scores, group, 1), loss(p, scores, group, 1, beta=beta))
        assert not torch.equal(loss(p, scores, group, 1), loss(p, scores, group, 1, beta=2 * beta))


def test_equal_values_are_ranked_however_close_their_scores_are():
    """Equal ranks would leave no gradient when training begins with a reference."""
    p, group = torch.zeros(2), torch.zeros(2, dtype=torch.long)
    assert ranking_losses.lambda_loss(p, torch.tensor([0.0, 0.5]), group, 1).item() > 0


def test_everything_is_computed_where_the_values_are():
    """A device without data: an operation that mixes it with the CPU is an error."""
    group = torch.empty(3, dtype=torch.long, device="meta")
    p, scores = torch.empty(3, device="meta"), torch.empty(3, device="meta")
    assert ranking_losses.plackett_luce_loss(p, scores, group, 2).device.type == "meta"
