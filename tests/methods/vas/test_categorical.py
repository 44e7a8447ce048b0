# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Categorical value heads: targets, loss and statistics against loops, and from rows to guided tokens."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import letter_reward, make_model, make_tokenizer
from datasets import Dataset

from trl_ext import ValueAugmentedLogitsProcessor, ValueModel, VASConfig, VASTrainer
from trl_ext.data.schema import DataError
from trl_ext.methods.vas.decoding.value_guide import ValueGuide
from trl_ext.methods.vas.losses import categorical_loss, two_hot
from trl_ext.methods.vas.policies import VASDecoding, load_value_model
from trl_ext.methods.vas.value_kind import ValueModelKind
from trl_ext.methods.vas.value_model.distribution import Statistic, atoms_of, statistic_of


ROWS = [
    {"prompt": "the film", "completions": [" was good", " was very bad and dull", " was"], "scores": [2.0, -1.0, 0.5]},
    {"prompt": "a story of music with", "completions": [" great plot", " no plot"], "scores": [1.0, 1.0]},
]
A = 5


def settings(folder: Path, **changes: Any) -> VASConfig:
    given: dict[str, Any] = {
        "output_dir": str(folder / "out"),
        "value_head": "categorical",
        "num_atoms": A,
        "per_device_train_batch_size": 2,
        "num_epochs_per_batch": 1,
        "learning_rate": 1e-2,
        "gradient_checkpointing": False,
        "report_to": [],
        "disable_tqdm": True,
        "logging_steps": 1,
        "save_strategy": "no",
        "max_completion_length": 5,
        "num_generations": 3,
    }
    return VASConfig(**given | changes)


def make_trainer(folder: Path, rows: Any = ROWS, value_model: Any = None, rewards: Any = None, **changes: Any):
    tokenizer = make_tokenizer()
    return VASTrainer(
        make_model(len(tokenizer)),
        rewards,
        args=settings(folder, **changes),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        value_model=make_model(len(tokenizer), seed=1) if value_model is None else value_model,
    )


def make_values(heads: tuple[str, ...] = ("reward",), low: float = -1.0, high: float = 3.0) -> ValueModel:
    """A value model whose distributions differ from token to token."""
    tokenizer = make_tokenizer()
    model = ValueModel.from_backbone(make_model(len(tokenizer), seed=1), heads, num_atoms=A).eval()
    model.config.low, model.config.high = [low] * len(heads), [high] * len(heads)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(3)
        model.head.weight.normal_(std=0.5)
    return model


# ----------------------------------------------------------------------------------------------------------- equations


def test_atoms_are_equally_distant():
    found = atoms_of([-1.0, 0.0], [3.0, 8.0], A, torch.device("cpu"))
    assert found.tolist() == [[-1.0, 0.0, 1.0, 2.0, 3.0], [0.0, 2.0, 4.0, 6.0, 8.0]]


def test_two_hot_targets_by_hand():
    """2.25 lies a quarter of the way from 2 to 3; what lies outside goes to the nearest atom."""
    atoms = atoms_of([-1.0], [3.0], A, torch.device("cpu"))
    found = two_hot(torch.tensor([[[2.25], [-1.0], [9.0], [-4.0]]]), atoms)[0, :, 0]
    expected = [[0, 0, 0, 0.75, 0.25], [1, 0, 0, 0, 0], [0, 0, 0, 0, 1], [1, 0, 0, 0, 0]]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float32))


def test_the_mean_of_a_two_hot_target_is_the_target():
    atoms = atoms_of([-1.0, 0.0], [3.0, 0.7], 51, torch.device("cpu"))
    targets = torch.rand(4, 3, 2, generator=torch.Generator().manual_seed(0)) * torch.tensor([4.0, 0.7])
    targets = targets + torch.tensor([-1.0, 0.0])
    found = two_hot(targets, atoms)
    torch.testing.assert_close((found * atoms).sum(-1), targets)
    torch.testing.assert_close(found.sum(-1), torch.ones(4, 3, 2))
    assert int((found > 0).sum(-1).max()) <= 2


def test_the_loss_is_the_cross_entropy_at_known_rewards():
    atoms = atoms_of([-1.0], [3.0], A, torch.device("cpu"))
    logits = torch.randn(1, 3, 1, A, generator=torch.Generator().manual_seed(0), requires_grad=True)
    targets = torch.tensor([[[2.25], [0.0], [torch.nan]]], requires_grad=True)
    mask = torch.tensor([[[True], [True], [False]]])
    loss = categorical_loss(logits, targets, mask, atoms)
    for t, goal in enumerate(([0, 0, 0, 0.75, 0.25], [0, 1, 0, 0, 0])):
        values = logits[0, t, 0].tolist()
        total = math.log(math.fsum(math.exp(x) for x in values))
        expected = -math.fsum(g * (x - total) for g, x in zip(goal, values, strict=True))
        assert float(loss[0, t, 0]) == pytest.approx(expected, abs=1e-6)
    assert float(loss[0, 2, 0]) == 0
    loss.sum().backward()
    assert targets.grad is None and not logits.grad[0, 2].any()
    assert (logits.grad[0, 0, 0, 3:] < 0).any() and (logits.grad[0, 1, 0, 1] < 0)  # descent makes the targets likelier
    assert (logits.grad[0, 1, 0, [0, 2, 3, 4]] > 0).all()


def oracle_statistic(p: list[float], atoms: list[float], statistic: Statistic) -> float:
    """By loops; of a quantile, by bisection of the distribution with each atom's probability spread evenly."""
    c = statistic.parameter
    if statistic.kind == "mean":
        return math.fsum(x * z for x, z in zip(p, atoms, strict=True))
    if statistic.kind == "log_mean_exp":
        return math.log(math.fsum(x * math.exp(c * z) for x, z in zip(p, atoms, strict=True))) / c
    width = atoms[1] - atoms[0]

    def below(value: float) -> float:
        return math.fsum(x * min(max((value - z) / width + 0.5, 0.0), 1.0) for x, z in zip(p, atoms, strict=True))

    low, high = atoms[0] - width, atoms[-1] + width
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if below(middle) < c else (low, middle)
    return low


@pytest.mark.parametrize(
    "text", ["mean", "log_mean_exp=2", "log_mean_exp=-0.5", "quantile=0.1", "quantile=0.5", "quantile=0.93"]
)
def test_statistics(text: str):
    statistic = Statistic.read(text)
    assert str(statistic) == text
    atoms = atoms_of([-1.0, 0.0], [3.0, 8.0], A, torch.device("cpu"))
    logits = torch.randn(6, 2, A, generator=torch.Generator().manual_seed(0)) * 2
    found = statistic_of(logits, atoms, statistic)
    for n in range(6):
        for h in range(2):
            p = logits[n, h].double().softmax(-1).tolist()
            assert float(found[n, h]) == pytest.approx(oracle_statistic(p, atoms[h].tolist(), statistic), abs=1e-4)


def test_statistics_by_hand():
    """0 or 4 with equal probability."""
    atoms, logits = torch.tensor([[0.0, 2.0, 4.0]]), torch.tensor([[0.0, -100.0, 0.0]])
    assert float(statistic_of(logits, atoms, Statistic())) == pytest.approx(2.0)
    found = statistic_of(logits, atoms, Statistic.read("log_mean_exp=1"))
    assert float(found) == pytest.approx(math.log((1 + math.exp(4)) / 2))
    # A quarter: half of the probability that is spread from -1 to 1.
    assert float(statistic_of(logits, atoms, Statistic.read("quantile=0.25"))) == pytest.approx(0.0, abs=1e-5)


def test_statistics_of_a_certain_return_are_that_return():
    atoms, logits = torch.tensor([[0.0, 2.0, 4.0]]), torch.tensor([[-1000.0, 0.0, -1000.0]])
    for text in ("mean", "log_mean_exp=3", "quantile=0.5"):
        assert float(statistic_of(logits, atoms, Statistic.read(text))) == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("median", "is `mean`, `log_mean_exp=c` or `quantile=c`, got 'median'"),
        ("quantile", "needs a c between 0 and 1, got 0"),
        ("quantile=1", "between 0 and 1"),
        ("mean=2", "`mean` takes no parameter, got 2"),
        ("log_mean_exp=0", "other than 0"),
        ("log_mean_exp=inf", "needs a finite number"),
        ("log_mean_exp=nan", "needs a finite number"),
        ("quantile=nan", "between 0 and 1"),
        ("quantile=low", "could not convert"),
    ],
)
def test_invalid_statistics(text: str, message: str):
    with pytest.raises(ValueError, match=f"`value_statistic` is '{text}'.*{message}"):
        Statistic.read(text)
    with pytest.raises(ValueError, match=message):
        VASDecoding(value_model_name_or_path=["x"], value_statistic=text).check()


# ----------------------------------------------------------------------------------------------------------- the model


def test_values_are_statistics_of_the_distribution():
    model, ids = make_values(("a", "b")), torch.tensor([[5, 6, 7, 8]])
    output = model(ids)
    assert output.logits.shape == (1, 4, 2, A) and output.values.shape == (1, 4, 2)
    atoms = model.atoms(ids.device)
    torch.testing.assert_close(output.values, (output.logits.softmax(-1) * atoms).sum(-1))
    model.statistic = Statistic.read("quantile=0.2")
    expected = statistic_of(output.logits, atoms, model.statistic)
    torch.testing.assert_close(model(ids).values, expected)
    torch.testing.assert_close(model.value_of(output.last_hidden_state), expected)
    assert expected.std() > 0.05


def test_a_saved_value_model_has_its_atoms(tmp_path: Path):
    model, ids = make_values(low=-2.0, high=5.0), torch.tensor([[5, 6, 7, 8]])
    model.save_pretrained(tmp_path)
    found = ValueModel.from_pretrained(tmp_path).eval()
    assert (found.config.num_atoms, found.config.low, found.config.high) == (A, [-2.0], [5.0])
    torch.testing.assert_close(found(ids).values, model(ids).values)
    loaded, _ = load_value_model(str(tmp_path), None, statistic="log_mean_exp=2")
    model.statistic = Statistic.read("log_mean_exp=2")
    torch.testing.assert_close(loaded(ids).values.float(), model(ids).values, atol=0.05, rtol=0.05)


def test_a_head_of_means_has_no_other_statistic(tmp_path: Path):
    tokenizer = make_tokenizer()
    model = ValueModel.from_backbone(make_model(len(tokenizer)))
    model.statistic = Statistic()
    with pytest.raises(ValueError, match=r"predicts the mean alone.*`value_head='categorical'`"):
        model.statistic = Statistic.read("quantile=0.1")
    with pytest.raises(ValueError, match="predicts means alone"):
        model.atom_logits(torch.zeros(1, model.head.in_features))
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"`value_statistic` is 'quantile=0.1'"):
        load_value_model(str(tmp_path), None, statistic="quantile=0.1")


def test_atoms_need_a_range_and_the_exact_form():
    tokenizer = make_tokenizer()
    model = ValueModel.from_backbone(make_model(len(tokenizer)), num_atoms=A)
    with pytest.raises(ValueError, match="range of the returns is not known"):
        model(torch.tensor([[5, 6]]))
    with pytest.raises(ValueError, match="at least 2 atoms, and the form 'state'"):
        ValueModel.from_backbone(make_model(len(tokenizer)), num_atoms=A, form="action")


@pytest.mark.parametrize("text", ["mean", "log_mean_exp=2", "quantile=0.2"])
def test_guidance_adds_the_statistic(text: str):
    """beta times the statistic of each candidate's distribution, against a pass of the value model for each."""
    model, ids = make_values(), torch.tensor([[5, 9, 11], [7, 2, 30]])
    model.statistic = Statistic.read(text)
    logits = torch.randn(2, len(make_tokenizer()), generator=torch.Generator().manual_seed(0))
    guide = ValueAugmentedLogitsProcessor(model, beta=1.5, top_k=4, pad_token_id=0)
    found = guide(ids, logits.clone())
    atoms = model.atoms(ids.device)
    for n in range(2):
        added = []
        for token in logits[n].topk(4).indices.tolist():
            after = model(torch.cat([ids[n], torch.tensor([token])])[None]).logits[0, -1]
            p = after[0].double().softmax(-1).tolist()
            added.append((token, 1.5 * oracle_statistic(p, atoms[0].tolist(), model.statistic)))
        for token, value in added:
            gap = float(found[n, token] - logits[n, token]) - float(found[n, added[0][0]] - logits[n, added[0][0]])
            assert gap == pytest.approx(value - added[0][1], abs=1e-3)


def test_flags_and_guide_files_choose_the_statistic(tmp_path: Path):
    make_values().save_pretrained(tmp_path)
    tokenizer, path = make_tokenizer(), str(tmp_path)
    model = make_model(len(tokenizer))
    values, _ = VASDecoding(value_model_name_or_path=[path], value_statistic="quantile=0.2").load_value_models(model)
    assert str(values.statistic) == "quantile=0.2"
    kind = ValueModelKind(model=path, statistic="log_mean_exp=2")
    kind.check()
    beside = kind.load_beside_engine(tokenizer, "values", torch.float32, torch.device("cpu"))
    for guide in (kind.load(model, tokenizer, "values"), beside):
        assert str(guide.model.statistic) == "log_mean_exp=2"
    with pytest.raises(ValueError, match="got 'median'"):
        ValueModelKind(model=path, statistic="median").check()


def test_a_recorded_graph_is_for_one_statistic():
    guide = ValueGuide(make_values())
    before = guide.static_key()
    guide.model.statistic = Statistic.read("quantile=0.2")
    assert guide.static_key() != before


# -------------------------------------------------------------------------------------------------------- the training


def test_the_range_is_that_of_the_scores_and_the_distribution_is_learned(tmp_path: Path):
    rows = [{"prompt": "the film", "completions": [" was good"] * 4, "scores": [2.0, -1.0, 2.0, 2.0]}]
    trainer = make_trainer(tmp_path, rows, num_train_epochs=150, lam=1.0, lr_scheduler_type="constant")
    assert "distributions over 5 returns, statistic mean" in repr(trainer.model)
    assert (trainer.model.config.low, trainer.model.config.high) == ([-1.0], [2.0])
    trainer.train()
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    assert losses[-1] < losses[0]
    # The completion's reward is 2 three times of four: the entropy of that is what the loss cannot go below.
    assert losses[-1] == pytest.approx(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)), abs=0.05)
    ids = torch.tensor([trainer.processing_class("the film was good")["input_ids"]])
    trainer.model.eval()
    with torch.no_grad():
        output = trainer.model(ids)
    torch.testing.assert_close(
        output.logits[0, -1, 0].softmax(-1)[[0, -1]], torch.tensor([0.25, 0.75]), atol=0.1, rtol=0
    )
    assert float(output.values[0, -1]) == pytest.approx(1.25, abs=0.3)


def test_one_step_moves_the_values_towards_the_scores(tmp_path: Path):
    for score in (-1.0, 3.0):
        rows = [{"prompt": "the film", "completions": [" was good"], "scores": [score]}]
        trainer = make_trainer(tmp_path, rows, value_range=[-1.0, 3.0], lr_scheduler_type="constant")
        trainer.train()
        ids = torch.tensor([trainer.processing_class("the film was good")["input_ids"]])
        with torch.no_grad():
            value = float(trainer.model(ids).values[0, -1])
        assert (value > 1.0) == (score > 1.0) and value != 1.0


def test_the_loss_does_not_depend_on_how_a_batch_is_split(tmp_path: Path):
    """Padding, the completions beside a completion, and gradient accumulation change nothing."""
    models = [make_values(), make_values()]
    for model, size in zip(models, (2, 1), strict=True):
        make_trainer(
            tmp_path,
            value_model=model.train(),
            per_device_train_batch_size=size,
            gradient_accumulation_steps=2 // size,
        ).train()
    torch.testing.assert_close(models[0].head.weight, models[1].head.weight, atol=1e-5, rtol=1e-4)


def test_normalised_rewards_have_a_normalised_range(tmp_path: Path):
    config = make_trainer(tmp_path, normalize_rewards=True).model.config
    [mean], [std] = config.reward_mean, config.reward_std
    assert config.low == pytest.approx([(-1.0 - mean) / std]) and config.high == pytest.approx([(2.0 - mean) / std])


def test_a_value_model_that_is_trained_further_keeps_its_range(tmp_path: Path):
    make_trainer(tmp_path).save_model(str(tmp_path / "saved"))
    saved = str(tmp_path / "saved")
    rows = [row | {"scores": [10 * x for x in row["scores"]]} for row in ROWS]
    assert make_trainer(tmp_path, rows, value_model=saved).model.config.high == [2.0]
    with pytest.raises(ValueError, match="`value_range` is that of a new value model"):
        make_trainer(tmp_path, value_model=saved, value_range=[0.0, 1.0])
    with pytest.raises(ValueError, match="predicts 5 atoms, but `value_head` and `num_atoms` ask for 7 atoms"):
        make_trainer(tmp_path, value_model=saved, num_atoms=7)
    with pytest.raises(ValueError, match="ask for the mean alone"):
        make_trainer(tmp_path, value_model=saved, value_head="mean", num_atoms=51)


def test_sampled_completions_need_a_range(tmp_path: Path):
    rows = [{"prompt": row["prompt"]} for row in ROWS]
    for changes in ({}, {"value_range": [0.0, 5.0], "normalize_rewards": True}):
        with pytest.raises(ValueError, match="needs the range of the returns before training"):
            make_trainer(tmp_path, rows, rewards=letter_reward, **changes)
    trainer = make_trainer(tmp_path, rows, rewards=letter_reward, value_range=[0.0, 5.0])
    trainer.train()
    assert (trainer.model.config.low, trainer.model.config.high) == ([0.0], [5.0])


def test_equal_scores_are_no_distribution(tmp_path: Path):
    rows = [row | {"scores": [1.0] * len(row["scores"])} for row in ROWS]
    with pytest.raises(DataError, match=r"'reward' have one value or none.*set `value_range`"):
        make_trainer(tmp_path, rows)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"value_form": "policy"}, "is for value_form='state', got 'policy'"),
        ({"num_atoms": 1}, "`num_atoms`"),
        ({"value_range": [1.0]}, "must be two numbers"),
        ({"value_range": [2.0, 1.0]}, "the lowest return and a higher one"),
        ({"value_range": [0.0, 1.0], "value_head": "mean"}, "`value_range` is that of a categorical head"),
        ({"value_head": "mean"}, "`num_atoms` is that of a categorical head"),
        ({"value_head": "histogram"}, "value_head"),
    ],
)
def test_invalid_settings(tmp_path: Path, changes: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        settings(tmp_path, **changes)
