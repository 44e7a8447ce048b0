# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0
"""The equations against plain loops, enumeration and worked numbers; signs of gradients."""

import itertools
import math

import pytest
import torch
from oracles.proxy import oracle_marginal, oracle_q, sigmoid

from trl_ext.methods.proxy_rlhf.losses import (
    decision_entropy,
    decision_logps,
    induced_logps,
    leave_one_out,
    marginal_logps,
    policy_loss,
    repeated_logps,
    value_loss,
)


def test_log_probabilities_of_decisions() -> None:
    logits = torch.tensor([0.3, -2.0, 5.0])
    found = decision_logps(logits, torch.tensor([True, False, False]))
    expected = [math.log(sigmoid(0.3)), math.log(1 - sigmoid(-2.0)), math.log(1 - sigmoid(5.0))]
    torch.testing.assert_close(found, torch.tensor(expected))


def test_entropy_is_largest_at_one_half() -> None:
    p = sigmoid(1.2)
    expected = -p * math.log(p) - (1 - p) * math.log(1 - p)
    found = decision_entropy(torch.tensor([0.0, 1.2, -1.2, 50.0]))
    torch.testing.assert_close(found, torch.tensor([math.log(2), expected, expected, 0.0]))


@pytest.mark.parametrize("forced_last", [False, True])
def test_induced_distribution(forced_last: bool) -> None:
    torch.manual_seed(0)
    logits, counts = torch.randn(6, 5) * 2, [5, 4, 3, 2, 1, 5]
    valid = torch.arange(5) < torch.tensor(counts)[:, None]
    found = induced_logps(logits, valid, forced_last).exp()
    for row, count in enumerate(counts):
        expected = oracle_q([sigmoid(float(x)) for x in logits[row, :count]], forced_last)
        torch.testing.assert_close(found[row, :count], torch.tensor(expected))
        assert not found[row, count:].any()
    torch.testing.assert_close(found.sum(1), torch.ones(6))


def test_the_first_candidate_is_forced_by_default() -> None:
    logits, valid = torch.tensor([[-1.0, 0.5]]), torch.ones(1, 2, dtype=torch.bool)
    torch.testing.assert_close(induced_logps(logits, valid), induced_logps(logits, valid, False))


@pytest.mark.parametrize("forced_last", [False, True])
@pytest.mark.parametrize("spread", [0.5, 4.0, 12.0])
def test_distribution_over_all_orders(forced_last: bool, spread: float) -> None:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(3, 5, generator=generator) * 2
    weights = (torch.randn(3, 5, generator=generator) * spread).softmax(1)
    for row in range(3):
        p = [sigmoid(float(x)) for x in logits[row]]
        expected = oracle_marginal(p, weights[row].double().tolist(), forced_last)
        [found] = marginal_logps(logits[row, None], weights[row, None], forced_last)
        torch.testing.assert_close(
            found, torch.tensor(expected, dtype=torch.float64).log().float(), rtol=1e-6, atol=1e-6
        )


def oracle_repeated(p: list[float], w: list[float], proposals: int, forced_last: bool) -> list[float]:
    """The mean of the induced distribution over all sequences of proposals with replacement."""
    q = [0.0] * len(p)
    for sequence in itertools.product(range(len(p)), repeat=proposals):
        probability = math.prod(w[c] for c in sequence)
        for c, x in zip(sequence, oracle_q([p[c] for c in sequence], forced_last), strict=True):
            q[c] += probability * x
    return q


@pytest.mark.parametrize("forced_last", [False, True])
@pytest.mark.parametrize("spread", [0.5, 4.0])
def test_distribution_where_rejected_candidates_are_proposed_again(forced_last: bool, spread: float) -> None:
    """Also for fewer candidates, which padding follows, and for fewer proposals than candidates."""
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(4, 4, generator=generator) * 2
    weights = (torch.randn(4, 4, generator=generator) * spread).softmax(1)
    counts, proposals = [4, 3, 1, 4], torch.tensor([4, 3, 1, 2])
    weights = weights * (torch.arange(4) < torch.tensor(counts)[:, None])
    weights = weights / weights.sum(1, keepdim=True)
    found = repeated_logps(logits, weights, proposals)
    torch.testing.assert_close(found.exp().sum(1), torch.ones(4))
    for row, count in enumerate(counts):
        p = [sigmoid(float(x)) for x in logits[row, :count]]
        own = oracle_repeated(p, weights[row, :count].double().tolist(), int(proposals[row]), forced_last)
        expected = [*map(math.log, own), *[-math.inf] * (4 - count)]
        assert found[row].tolist() == pytest.approx(expected, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("forced_last", [False, True])
def test_rows_do_not_depend_on_one_another(forced_last: bool) -> None:
    generator = torch.Generator().manual_seed(2)
    logits, weights = torch.randn(3, 4, generator=generator), torch.rand(3, 4, generator=generator)
    weights = weights / weights.sum(1, keepdim=True)
    for row, found in enumerate(marginal_logps(logits, weights, forced_last)):
        torch.testing.assert_close(found, marginal_logps(logits[row, None], weights[row, None], forced_last)[0])


def test_proposals_by_hand() -> None:
    """
    Two candidates of weights 0.75 and 0.25, accepted with 0.5 and 0.2: r = 0.375 + 0.2 = 0.575. With two proposals the
    first is 0.5 * 0.75 + 0.75 r, with three 0.375 (1 + r) + 0.75 r^2.
    """
    logits, weights = torch.tensor([[0.0, math.log(0.2 / 0.8)]]), torch.tensor([[0.75, 0.25]])
    two = [0.375 + 0.75 * 0.575, 0.05 + 0.25 * 0.575]
    three = [0.375 * 1.575 + 0.75 * 0.575**2, 0.05 * 1.575 + 0.25 * 0.575**2]
    found = repeated_logps(logits.expand(3, 2), weights.expand(3, 2), torch.tensor([1, 2, 3]))
    torch.testing.assert_close(found.exp(), torch.tensor([[0.75, 0.25], two, three]))


@pytest.mark.parametrize("logit", [200.0, -200.0], ids=["always", "never"])
def test_proposals_that_are_always_or_never_accepted_are_samples(logit: float) -> None:
    weights = torch.tensor([[0.7, 0.2, 0.1]])
    found = repeated_logps(torch.full((1, 3), logit), weights, torch.tensor([300]))
    torch.testing.assert_close(found.exp(), weights)


def test_many_proposals_are_computed_in_float64() -> None:
    """Of 1,000,000 proposals none is accepted with probability (1 - 1e-7)^1000000 = 0.905; float32 has no 1 - 1e-8."""
    logits, weights = torch.tensor([[math.log(2e-7), -40.0]]), torch.tensor([[0.5, 0.5]])
    [found] = repeated_logps(logits, weights, torch.tensor([1_000_001])).exp()
    assert float(found[1]) == pytest.approx(0.5 * (1 - 1e-7) ** 1_000_000, rel=1e-5)
    assert float(found.sum()) == pytest.approx(1.0, rel=1e-5)


def test_rejections_that_are_almost_certain_not_to_happen() -> None:
    """1 - sigmoid(10) has three digits in float32: the integral is computed in float64."""
    logits, weights = torch.tensor([10.0, 10.0, 0.0]), torch.tensor([0.6, 0.4, 1e-9])
    expected = oracle_marginal([sigmoid(float(x)) for x in logits], weights.double().tolist(), False)
    [found] = marginal_logps(logits[None], weights[None])
    torch.testing.assert_close(found, torch.tensor(expected).log(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("logit", [2.0, 38.0, 100.0])
@pytest.mark.parametrize("least", [1e-13, 1e-37])
def test_candidates_of_hardly_any_weight(logit: float, least: float) -> None:
    """Also in float32's least weights, beside two that are mostly rejected; `oracle_marginal`."""
    logits, weights = torch.tensor([-logit, -logit, 1.0]), torch.tensor([0.6, 0.4, least])
    [found] = marginal_logps(logits[None], weights[None])
    expected = oracle_marginal([sigmoid(float(x)) for x in logits], weights.double().tolist(), False)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64).log().float(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("logit", [38.0, 100.0])
def test_rejections_that_float64_cannot_tell_from_zero(logit: float) -> None:
    """1 - sigmoid(38) is 3e-17. Two equal candidates are taken with probability 1/2 each, whatever their logit."""
    [found] = marginal_logps(torch.full((1, 2), logit), torch.full((1, 2), 0.5))
    torch.testing.assert_close(found, torch.full((2,), 0.5).log())


@pytest.mark.parametrize("forced_last", [False, True])
def test_the_integral_is_exact_to_eight_digits(forced_last: bool) -> None:
    generator = torch.Generator().manual_seed(4)
    logits = torch.randn(4, generator=generator, dtype=torch.float64)
    weights = torch.randn(4, generator=generator, dtype=torch.float64).softmax(0)
    expected = oracle_marginal([sigmoid(float(x)) for x in logits], weights.tolist(), forced_last)
    [found] = marginal_logps(logits[None], weights[None], forced_last)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64).log(), rtol=0, atol=4e-8)


@pytest.mark.parametrize("forced_last", [False, True])
def test_padding_changes_nothing(forced_last: bool) -> None:
    """Also where candidates are mostly rejected, so that the forced one counts."""
    logits, weights = torch.tensor([[-2.0, -1.0, -3.0]]), torch.tensor([[0.5, 0.3, 0.2]])
    expected = marginal_logps(logits, weights, forced_last)
    padded = torch.nn.functional.pad(logits, (0, 2), value=1.5), torch.nn.functional.pad(weights, (0, 2))
    found = marginal_logps(*padded, forced_last)
    torch.testing.assert_close(found[:, :3], expected)
    assert found[0, 3:].tolist() == [-math.inf, -math.inf]
    assert float(expected.exp().sum()) == pytest.approx(1, abs=1e-6)


def test_everything_is_computed_where_the_logits_are() -> None:
    """A device without data: an operation that mixes it with the CPU is an error."""
    logits, weights = torch.empty(3, 4, device="meta"), torch.empty(3, 4, device="meta")
    found = marginal_logps(logits, weights, True)
    assert found.device.type == "meta" and found.shape == (3, 4) and found.dtype == torch.float32


@pytest.mark.parametrize("forced_last", [False, True])
def test_distribution_over_all_orders_sums_to_one(forced_last: bool) -> None:
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn(20, generator=generator) * 3
    weights = (torch.randn(20, generator=generator) * 3).softmax(0)
    weights[17:] = 0
    weights = weights / weights.sum()
    found = marginal_logps(logits[None], weights[None], forced_last)
    assert float(found.exp().sum()) == pytest.approx(1, abs=1e-5)


def test_constant_decisions_give_the_weights() -> None:
    """Always accepting is sampling by the weights; so is always rejecting, if the first candidate is forced."""
    weights = torch.tensor([[0.6, 0.3, 0.1]])
    for logit in (40.0, -40.0):
        found = marginal_logps(torch.full((1, 3), logit), weights)
        torch.testing.assert_close(found.exp(), weights)


def test_policy_loss_against_loops() -> None:
    generator = torch.Generator().manual_seed(3)
    new, old, advantages = (torch.randn(40, generator=generator) * 0.5 for _ in range(3))
    expected = []
    for n, o, a in zip(new.tolist(), old.tolist(), advantages.tolist(), strict=True):
        ratio = math.exp(n - o)
        expected.append(-min(ratio * a, max(0.8, min(1.2, ratio)) * a))
    torch.testing.assert_close(policy_loss(new, old, advantages, 0.2), torch.tensor(expected))
    ratio = (new - old).exp()
    torch.testing.assert_close(policy_loss(new, old, advantages, 0), -ratio * advantages)


def test_signs_of_gradients() -> None:
    """A decision with a positive advantage becomes likelier, whether it was to accept or to reject."""
    for accepted, advantage in itertools.product([True, False], [1.0, -1.0]):
        logits = torch.zeros(1, requires_grad=True)
        logps = decision_logps(logits, torch.tensor([accepted]))
        policy_loss(logps, logps.detach(), torch.tensor([advantage]), 0.2).sum().backward()
        direction = -logits.grad[0]  # type: ignore[index]
        assert float(direction) * (1 if accepted else -1) * advantage == pytest.approx(0.5)


def test_clipping_stops_the_gradient_on_one_side_only() -> None:
    for log_ratio, advantage, moves in [(0.5, 1.0, False), (0.5, -1.0, True), (-0.5, 1.0, True), (-0.5, -1.0, False)]:
        logps = torch.tensor([log_ratio], requires_grad=True)
        policy_loss(logps, torch.zeros(1), torch.tensor([advantage]), 0.2).sum().backward()
        assert bool(logps.grad.any()) == moves  # type: ignore[union-attr]


def test_value_loss() -> None:
    values, old, returns = torch.tensor([1.0, 3.0, 0.1]), torch.tensor([0.0, 0.0, 0.0]), torch.tensor([2.0, 2.0, 0.0])
    torch.testing.assert_close(value_loss(values, old, returns, 0.0), torch.tensor([0.5, 0.5, 0.005]))
    # Clipped to 0.2: (0.2 - 2)^2 is the larger
    torch.testing.assert_close(value_loss(values, old, returns, 0.2), torch.tensor([1.62, 1.62, 0.005]))
    # From 1 up to 1.2 and down to 0.8; from -1 no lower than -1.2
    values, old, returns = (
        torch.tensor([3.0, -2.0, -3.0]),
        torch.tensor([1.0, 1.0, -1.0]),
        torch.tensor([4.0, -4.0, -5.0]),
    )
    expected = 0.5 * torch.tensor([(1.2 - 4) ** 2, (0.8 + 4) ** 2, (-1.2 + 5) ** 2])
    torch.testing.assert_close(value_loss(values, old, returns, 0.2), expected)
    # Within the range nothing is clipped
    within = value_loss(torch.tensor([1.1]), torch.tensor([1.0]), torch.tensor([0.0]), 0.2)
    torch.testing.assert_close(within, torch.tensor([0.605]))
    pulled = torch.tensor([1.0], requires_grad=True)
    value_loss(pulled, torch.tensor([1.0]), torch.tensor([2.0]), 0.2).sum().backward()
    assert float(pulled.grad) == -1.0  # type: ignore[arg-type]


def test_leave_one_out() -> None:
    nan = math.nan
    found = leave_one_out(torch.tensor([[1.0, 2.0, 6.0], [1.0, nan, 3.0], [nan, 5.0, nan]]))
    expected = torch.tensor([[-3.0, -1.5, 4.5], [-2.0, nan, 2.0], [nan, nan, nan]])
    torch.testing.assert_close(found, expected, equal_nan=True)
