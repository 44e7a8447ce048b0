# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Which ranking losses there are: those of this package, those of others by entry points, and what is not accepted."""

import sys

import pytest
import torch
from conftest import REPOSITORY
from pages import blocks
from stranger import write_package

from trl_ext import RankingLoss, RRHFConfig
from trl_ext.methods.rrhf.ranking_registry import GROUP, OWN, find_ranking_loss


[LOSS] = [block.text for block in blocks(REPOSITORY / "docs" / "how_to" / "ranking_loss.md", "python")]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder on `sys.path` for packages. Modules imported from it are removed from `sys.modules` afterwards."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


def write_loss(folder, source=LOSS, package="loss-pkg", entry="exponential"):
    reference = f"{package.replace('-', '_')}:EXPONENTIAL"
    return write_package(folder, package, {"__init__.py": source}, {entry: reference}, group=GROUP)


def config(tmp_path, **settings):
    return RRHFConfig(str(tmp_path / "out"), report_to="none", use_cpu=True, bf16=False, **settings)


# ------------------------------------------------------------------------------------------------------------ members


def test_the_losses_of_this_package():
    assert list(OWN) == ["rrhf", "plackett_luce", "listnet", "lambda", "slic", "pro", "listwise_dpo", "qrpo"]
    assert all(name == member.name and len(member.source) > 10 for name, member in OWN.items())
    assert [name for name, member in OWN.items() if member.needs_reference] == ["listwise_dpo", "qrpo"]
    sums = [name for name, member in OWN.items() if member.length_penalty == 0]
    assert sums == ["lambda", "slic", "listwise_dpo", "qrpo"]


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"name": "Not a name"}, ValueError, "cannot name a ranking loss"),
        ({"beta": -1.0}, ValueError, "`beta` of the ranking loss `mine` must be at least 0"),
        ({"length_penalty": float("nan")}, ValueError, "`length_penalty` of the ranking loss `mine`"),
        ({"loss": lambda p_N, scores_N: p_N}, TypeError, r"'mine' is not called as `loss\(p_N, scores_N, group_N"),
        ({"margin": 1.0}, TypeError, r"num_prompts, beta=1.0, margin=1.0\)`: got an unexpected keyword argument"),
        ({"beta": None}, TypeError, "missing a required (keyword-only )?argument: 'beta'"),
    ],
)
def test_a_loss_that_cannot_be_used(change, error, words):
    def mine(p_N, scores_N, group_N, num_prompts, *, beta):
        return p_N.new_zeros(num_prompts)

    with pytest.raises(error, match=words):
        RankingLoss(**{"name": "mine", "loss": mine, "source": "none", "beta": 1.0} | change)


# ----------------------------------------------------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("settings", "beta", "margin", "length_penalty"),
    [
        ({}, None, 0.0, 1.0),
        ({"margin": 0.5, "length_penalty": 0.0}, None, 0.5, 0.0),
        ({"ranking_loss": "plackett_luce"}, 1.0, None, 1.0),
        ({"ranking_loss": "Plackett-Luce"}, 1.0, None, 1.0),
        ({"ranking_loss": "lambda"}, 0.05, None, 0.0),
        ({"ranking_loss": "slic"}, 1.0, 1.0, 0.0),
        ({"ranking_loss": "slic", "margin": 0.0, "ranking_beta": 3.0}, 3.0, 0.0, 0.0),
        ({"ranking_loss": "listwise_dpo", "ranking_reference": "policy"}, 0.1, None, 0.0),
        ({"ranking_loss": "qrpo", "ranking_reference": "policy", "length_penalty": 1.0}, 0.1, None, 1.0),
    ],
)
def test_numbers_that_are_not_set_are_those_of_the_loss(tmp_path, settings, beta, margin, length_penalty):
    ranking = config(tmp_path, **settings).ranking
    assert (ranking.beta, ranking.margin, ranking.length_penalty) == (beta, margin, length_penalty)


@pytest.mark.parametrize("name", OWN)
def test_a_margin_of_0_is_no_margin(tmp_path, name):
    """It is off, so every loss takes it: also one whose equation has none."""
    reference = {"ranking_reference": "policy"} if OWN[name].needs_reference else {}
    ranking = config(tmp_path, ranking_loss=name, margin=0, **reference).ranking
    assert ranking.margin == (0 if name in ("rrhf", "slic") else None)
    loss_B = ranking(torch.tensor([-1.0, -2.0]), torch.tensor([0.0, 1.0]), torch.tensor([0, 0]), 1)
    assert loss_B.shape == (1,)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (
            {"ranking_loss": "listnett"},
            "must be one of rrhf, plackett_luce, .*qrpo, got 'listnett'; did you mean",
        ),
        ({"ranking_loss": "listnet", "margin": 0.5}, "`margin` is 0.5, but the ranking loss 'listnet' has none"),
        ({"ranking_beta": 0.5}, "`ranking_beta` is set, but the ranking loss 'rrhf' has none: .*`rank_weight`"),
        ({"ranking_loss": "pro", "ranking_beta": 0.0}, "`ranking_beta` must be positive and finite, got 0.0"),
        ({"ranking_loss": "pro", "ranking_beta": float("inf")}, "`ranking_beta` must be positive"),
        ({"ranking_loss": "listwise_dpo"}, "'listwise_dpo' compares the policy .*set `ranking_reference: policy`"),
        ({"ranking_loss": "qrpo"}, "'qrpo' compares the policy .*set `ranking_reference: policy`"),
        ({"ranking_reference": "policy", "rank_weight": 0.0}, "`ranking_reference: policy` has no effect without"),
        ({"ranking_loss": "listnet", "rank_weight": 0.0}, "`ranking_loss: listnet` has no effect without"),
        ({"margin": 0.2, "rank_weight": 0.0}, "`margin: 0.2` has no effect without"),
        ({"ranking_reference": "other"}, "`ranking_reference` must be one of none, policy"),
        ({"margin": -0.5}, "`margin` must be at least 0"),
        ({"length_penalty": -0.5}, "`length_penalty` must be at least 0"),
        ({"sync_ref_model": True}, "no setting asks for one"),
    ],
)
def test_settings_that_contradict_one_another(tmp_path, settings, words):
    with pytest.raises(ValueError, match=words):
        config(tmp_path, **settings)


def test_a_reference_of_the_ranking_loss_can_follow_the_policy(tmp_path):
    args = config(tmp_path, ranking_loss="listwise_dpo", ranking_reference="policy", sync_ref_model=True)
    assert args.needs_reference(samples=False)
    assert not config(tmp_path, beta=0.1).needs_reference(samples=False)


# ------------------------------------------------------------------------------------------------------ other packages


def test_a_loss_of_another_package(folder):
    """That of the how-to page. p = 0, ln 2 with the wrong one ahead, and beta 2: exp(2 ln 2) = 4."""
    assert len(LOSS.strip().splitlines()) <= 20
    write_loss(folder)
    assert config(folder, ranking_loss="exponential").ranking.beta == 1.0
    ranking = config(folder, ranking_loss="exponential", ranking_beta=2.0).ranking
    assert ranking.member.source == "RankBoost, Freund et al. 2003"
    p = torch.tensor([0.6931471805599453, 0.0], dtype=torch.float64)
    assert ranking(p, torch.tensor([0.0, 1.0]), torch.tensor([0, 0]), 1).tolist() == pytest.approx([4.0])
    assert ranking.describe() == "exponential, beta 2, length penalty 1"
    with pytest.raises(ValueError, match="has none"):
        config(folder, ranking_loss="exponential", margin=1.0)


def test_a_broken_package_is_named_and_does_not_affect_others(folder):
    write_loss(folder)
    write_loss(folder, "import no_such_module", "broken-pkg", "broken")
    assert find_ranking_loss("exponential").beta == 1.0
    with pytest.raises(ValueError, match=r"qrpo, exponential, got 'broken'.*broken of broken-pkg 0\.3: Module"):
        find_ranking_loss("broken")


def test_an_object_of_another_kind_and_a_name_that_is_taken(folder):
    write_loss(folder, "EXPONENTIAL = 3", "a-pkg", "three")
    write_loss(folder, LOSS.replace('"exponential"', '"listnet"'), "b-pkg", "listnet")
    with pytest.raises(ValueError) as caught:
        find_ranking_loss("three")
    assert "'a_pkg:EXPONENTIAL' must be a trl_ext.RankingLoss, but is a int" in str(caught.value)
    assert "the name 'listnet' is taken by trl-ext, which is kept" in str(caught.value)
    assert find_ranking_loss("listnet") is OWN["listnet"]
