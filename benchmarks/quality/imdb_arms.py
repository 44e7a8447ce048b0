# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
What the suite `imdb` trains and measures: the arms of the four methods, and the settings tried before.

An [`Arm`] is one piece of work for one seed. `tuned` has the settings that were tried with one seed to choose those of
`chosen`; what they gave is kept, the bad ones included.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.harness.models import MODELS, judge_of
from benchmarks.harness.results import ROOT
from benchmarks.harness.text import PRINCIPLE
from benchmarks.quality import experiment


METHODS = ("proxy_rlhf", "psle", "rrhf", "vas")
BETAS = (1.0, 2.0, 3.0, 5.0, 8.0)
PARTS = 4  # jobs that sample for VAS, each for a part of the prompts


@dataclass(frozen=True)
class Task:
    """
    Models, prompts and lengths.

    Args:
        model, reward, small (`str`): The policy, the reward (a sequence classifier), and a smaller model of the same
            vocabulary, for a value model.
        train, evaluation, other (`str`): Files of prompts: to train on, to measure on, and of another kind.
        prompts, evaluated (`int`): How many of the first two are used.
        max_completion_length, top_k (`int`): Of all completions but those that the KL is measured on, which have no
            top-k.
        samples (`int`): Completions a prompt that value models learn from.
        batch (`int`): Sequences that are generated or scored at once.
    """

    model: str
    reward: str
    small: str
    train: str
    evaluation: str
    other: str = str(ROOT / "benchmarks" / "prompts" / "books_and_restaurants.jsonl")
    prompts: int = 6000
    evaluated: int = 600
    max_completion_length: int = 48
    top_k: int = 50
    samples: int = 12
    batch: int = 750

    @property
    def judge(self) -> str:
        """A classifier that is measured beside the reward and that no arm is trained on, where there is one."""
        return judge_of(self.reward)

    @classmethod
    def of(cls, models: Path, data: Path, **changes: Any) -> "Task":
        """The task with the 7 M models of one folder and the prompts of another, named as in the recipes."""
        return cls(
            model=str(models / "imdb-7m"),
            reward=str(models / "imdb-7m-reward"),
            small=str(MODELS / "imdb-2m"),
            train=str(data / "imdb_prompts_train.jsonl"),
            evaluation=str(data / "imdb_prompts_eval.jsonl"),
            **changes,
        )


@dataclass(frozen=True)
class Arm(experiment.Arm):
    """
    One piece of work for one seed.

    Args:
        kind (`str`): Function of [`~benchmarks.quality.imdb_train`] that does it.
        fields (`dict`, *optional*): What that function takes: fields of a config, mostly.
        marks (`tuple[float, ...]`, *optional*, defaults to `(1.0,)`): Parts of the training after which to measure.
    """

    kind: str
    fields: dict[str, Any] = field(default_factory=dict)
    marks: tuple[float, ...] = (1.0,)


BASE = Arm("base", "base")
_HALF = (0.5, 1.0)

# ----------------------------------------------------------------------------------------------------------- PSLE

_SNAPSHOT = {
    "principles": [PRINCIPLE.strip()],
    "num_iterations": 8,
    "prompts": 2048,
    "per_device_train_batch_size": 64,
    "learning_rate": 3e-5,
    "lr_scheduler_type": "constant_with_warmup",
    "warmup_steps": 2,
    "weight_decay": 0.0,
}
# Answers of the current model for every step, either answer of a pair may win, and a KL term in the reward.
_FRESH = {
    **_SNAPSHOT,
    "resample_steps": 1,
    "num_iterations": 2,
    "prompts": 6000,
    "per_device_train_batch_size": 128,
    "num_generations": 2,
    "two_sided": True,
    "beta": 0.04,
}


def _psle(name: str, settings: dict[str, Any], **changes: Any) -> Arm:
    return Arm(name, "psle", {**settings, **changes}, _HALF)


def _psle_tuned() -> list[Arm]:
    guarded = {**_SNAPSHOT, "two_sided": True, "beta": 0.04}
    return [
        BASE,
        _psle("fresh, n 2, two-sided, beta 0.04, lr 3e-5", _FRESH),
        _psle("fresh, n 2, two-sided, beta 0.04, lr 1e-4", _FRESH, learning_rate=1e-4),
        _psle("fresh, n 2, two-sided, beta 0.04, lr 3e-5, rank 10", _FRESH, rank_weight=10.0),
        _psle("fresh, n 2, two-sided, beta 0.04, lr 3e-5, no SFT", _FRESH, rank_weight=1.0, sft_weight=0.0),
        _psle("fresh, n 2, two-sided, beta 0.1, lr 3e-5, rank 10", _FRESH, rank_weight=10.0, beta=0.1),
        _psle("fresh, n 2, two-sided, beta 0.04, lr 1e-5, rank 10", _FRESH, rank_weight=10.0, learning_rate=1e-5),
        _psle("fresh, n 2, one-sided, beta 0.04, lr 3e-5, rank 10", _FRESH, two_sided=False, rank_weight=10.0),
        _psle("snapshot, lr 1e-5", _SNAPSHOT, learning_rate=1e-5),
        _psle("snapshot, lr 1e-5, rank 10", _SNAPSHOT, learning_rate=1e-5, rank_weight=10.0),
        _psle("snapshot, lr 3e-5, rank 10", _SNAPSHOT, rank_weight=10.0),
        _psle("snapshot, lr 1e-4", _SNAPSHOT, learning_rate=1e-4),
        _psle("snapshot, lr 3e-5, two-sided, beta 0.04", guarded),
        _psle("snapshot, lr 3e-5, two-sided, beta 0.04, rank 10", guarded, rank_weight=10.0),
    ]


def _psle_chosen() -> list[Arm]:
    chosen = _FRESH
    # Mostly ranking, in larger steps, and a stronger pull back: what was tried kept twice the variety at this reward.
    ranked = {**_FRESH, "rank_weight": 10.0, "learning_rate": 1e-4, "beta": 0.05}
    return [
        BASE,
        _psle("PSLE, ranking x 10, lr 1e-4", ranked),
        _psle("PSLE", chosen),
        _psle("PSLE, no KL term, lr 1e-4", chosen, beta=0.0, learning_rate=1e-4),
        _psle("ranking only", chosen, sft_weight=0.0),
        _psle("weighted SFT only", chosen, rank_weight=0.0),
        _psle("constant threshold", chosen, threshold_decay=1.0),
        _psle("threshold 1", chosen, threshold=1.0),
        _psle("one-sided", chosen, two_sided=False),
        _psle("PSLE as in the paper, lr 1e-5", _SNAPSHOT, learning_rate=1e-5),
        _psle("context distillation", _SNAPSHOT, learning_rate=1e-5, rank_weight=0.0, sft_target="guided"),
        _psle("best-of-4 SFT", _SNAPSHOT, num_iterations=4, num_generations=4, rank_weight=0.0, sft_target="best"),
    ]


# ----------------------------------------------------------------------------------------------------------- RRHF

# The recipes' settings: 128 prompts a step, one pass over the prompts. Completions are either given, the same for all
# losses, or new ones of the current model for every step.
_RANKED = {
    "num_generations": 4,
    "per_device_train_batch_size": 128,
    "num_train_epochs": 1,
    "learning_rate": 3e-5,
    "lr_scheduler_type": "constant_with_warmup",
    "warmup_steps": 2,
    "weight_decay": 0.0,
}
_NEW = {"resample_steps": 1, "beta": 0.04}
# As many completions a step and in all, with all parameters trained: what the losses on new completions are measured
# against.
GRPO = Arm(
    "TRL's GRPO, new completions",
    "grpo",
    {**_RANKED, "beta": 0.04},
    _HALF,
)
_GIVEN = "samples of the base"
# Each loss with the SFT term and the reference that its paper has; the numbers are the losses' own.
_RANKING_LOSSES: dict[str, dict[str, Any]] = {
    "rrhf": {},
    "plackett_luce": {"sft_weight": 0.0},
    "listnet": {"sft_weight": 0.0},
    "lambda": {"sft_weight": 0.0, "ranking_reference": "policy"},
    "slic": {},
    "pro": {},
    "listwise_dpo": {"sft_weight": 0.0, "ranking_reference": "policy"},
    "qrpo": {"sft_weight": 0.0, "ranking_reference": "policy"},
}


def _rrhf(loss: str, given: bool, name: str = "", **changes: Any) -> Arm:
    fields = {**_RANKED, "ranking_loss": loss, **_RANKING_LOSSES[loss], **({} if given else _NEW), **changes}
    completions = "given completions" if given else "new completions"
    return Arm(f"{name or loss}, {completions}", "rrhf", fields, _HALF, needs=(_GIVEN,) if given else ())


def _given() -> Arm:
    return Arm(_GIVEN, "samples", {"part": 0, "parts": 1, "num_generations": _RANKED["num_generations"]})


def _rrhf_chosen() -> list[Arm]:
    return [
        BASE,
        _given(),
        *(_rrhf(loss, given) for given in (True, False) for loss in _RANKING_LOSSES),
        _rrhf("rrhf", True, "SFT on the best", rank_weight=0.0),
        _rrhf("rrhf", False, "SFT on the best", rank_weight=0.0),
        GRPO,
    ]


def _rrhf_tuned() -> list[Arm]:
    """Other learning rates and betas: a loss on sums is on another scale than one on means."""
    rates = [
        _rrhf(loss, True, f"{loss}, lr {rate:g}", learning_rate=rate)
        for loss in _RANKING_LOSSES
        for rate in (1e-5, 1e-4)
    ]
    betas = [
        _rrhf(loss, True, f"{loss}, ranking_beta {beta:g}", ranking_beta=beta)
        for loss, tried in (
            ("plackett_luce", (0.3, 3.0)),
            ("listnet", (0.3, 3.0)),
            ("lambda", (0.2, 1.0)),
            ("listwise_dpo", (0.05, 0.3)),
            ("qrpo", (0.05, 0.3)),
        )
        for beta in tried
    ]
    return [BASE, _given(), *rates, *betas]


# ----------------------------------------------------------------------------------------------------- Proxy-RLHF

_PROXY = {
    "top_k": 20,
    "per_device_train_batch_size": 128,
    "num_train_epochs": 1,  # 47 rounds
    "proxy_layer_sizes": [256],
    "learning_rate": 1e-3,
    "lr_scheduler_type": "constant",
}


def _proxy(name: str, **changes: Any) -> Arm:
    # The longer it is trained, the higher the reward and the less varied the answers: three points of one run.
    return Arm(name, "proxy_rlhf", {**_PROXY, **changes}, (0.5, 0.85, 1.0))


# The share of an adapter of rank 6 on all linear layers of a 7 M model is 2.6 %.
GRPO_LORA = Arm(
    "TRL's GRPO with LoRA",
    "grpo",
    {"lora_r": 6, "per_device_train_batch_size": 64, "num_generations": 8, "learning_rate": 1e-3, "beta": 0.05,
     "max_steps": 40, "lr_scheduler_type": "constant_with_warmup", "warmup_steps": 2},
    _HALF,
)  # fmt: skip


def _proxy_tuned() -> list[Arm]:
    return [
        BASE,
        _proxy("sampled, candidate, lr 3e-3", learning_rate=3e-3),
        _proxy("sampled, candidate, lr 1e-3"),
        _proxy("sampled, candidate, lr 1e-3, hidden 128", proxy_layer_sizes=[128]),
        _proxy("sampled, candidate, lr 1e-3, entropy 0.05", entropy_coef=0.05),
        _proxy("sampled, candidate, lr 1e-3, kl 0.05", kl_coef=0.05),
        _proxy("sampled, candidate, lr 1e-3, top-k 50", top_k=50),
        _proxy("sampled, candidate, lr 1e-3, accept 0.8 at first", initial_accept_rate=0.8),
        _proxy("sampled, context, lr 1e-3", feature="context"),
        _proxy("sampled, context, lr 1e-3, kl 0.05", feature="context", kl_coef=0.05),
        _proxy("descending, candidate, lr 1e-3", order="descending"),
        _proxy("descending, context, lr 1e-3", order="descending", feature="context"),
        GRPO_LORA,
    ]


def _proxy_chosen() -> list[Arm]:
    arms = [
        _proxy(f"{order}, {feature}", order=order, feature=feature)
        for order in ("sampled", "descending")
        for feature in ("candidate", "context")
    ]
    # More of the model's variety is left to it. The layer makes it 0.5 % of the model.
    wider = _proxy("sampled, candidate, 50 candidates", top_k=50)
    widest = {"top_k": 200, "proxy_layer_sizes": [64]}
    named = "sampled, candidate, 200 candidates, hidden 64"
    return [
        BASE,
        *arms,
        wider,
        _proxy(named, **widest),
        _proxy(f"{named}, lr 3e-3", **widest, learning_rate=3e-3),
        GRPO_LORA,
    ]


# ------------------------------------------------------------------------------------------------------------- VAS

_VALUE = {
    "learning_rate": 6e-4,
    "lr_scheduler_type": "linear",
    "warmup_steps": 0.03,
    "num_train_epochs": 1,
    "num_epochs_per_batch": 1,
    "per_device_train_batch_size": 16,
}
# As in recipes/vas/imdb-7m_full_imdb_cpu.yaml.
_RECIPE = {"learning_rate": 3e-4, "per_device_train_batch_size": 8, "bf16": True}
_SAMPLED = tuple(f"samples {part}" for part in range(PARTS))
_SEVEN, _POLICY_TRUNK, _TWO = "7 M value", "7 M value from the policy's trunk", "2 M value"
_AGAIN = "7 M value, trained again on guided samples"


def _value(name: str, trunk: str, **changes: Any) -> Arm:
    return Arm(name, "value", {"trunk": trunk, **_VALUE, **changes}, needs=_SAMPLED)


def _guide(value: str, k: int, betas: tuple[float, ...] = BETAS) -> Arm:
    needs = (value,) if value != "reward model as value" else ()
    return Arm(f"{value}, k = {k}", "guide", {"value": value, "k": k, "betas": list(betas)}, needs=needs)


def _samples() -> list[Arm]:
    return [Arm(name, "samples", {"part": part}) for part, name in enumerate(_SAMPLED)]


def _vas_values() -> list[Arm]:
    again = {"num_iterations": 2, "num_train_epochs": 2, "sampling_beta": 2.0, "sampling_candidates": 20,
             "num_generations": 4}  # fmt: skip
    return [
        _value(_AGAIN, "reward", **_RECIPE, **again),
        _value(_SEVEN, "reward", **_RECIPE),
        _value(_TWO, "small", learning_rate=1.5e-3),
        _value(_POLICY_TRUNK, "model"),
        _value("7 M value, action form", "reward", value_form="action"),
        _value("head on the policy, policy form", "", value_form="policy", learning_rate=3e-3),
    ]


def _vas_chosen() -> list[Arm]:
    values = _vas_values()
    frontier = [
        _guide(_SEVEN, 50, (1.0, 1.8, 3.0, 5.0, 8.0)),  # 1.8: a KL of 4, which a goal is about
        *(_guide(_SEVEN, k) for k in (20, 10)),
        *(_guide(_TWO, k) for k in (50, 20, 10)),
    ]
    others = [
        _guide(_AGAIN, 50, (1.0, 2.0, 3.0, 4.0, 6.0)),
        _guide(_POLICY_TRUNK, 50, (2.0,)),
        _guide("7 M value, action form", 50, (1.0, 2.0, 3.0)),
        _guide("head on the policy, policy form", 50, (1.0, 2.0, 3.0)),
        _guide("reward model as value", 20, (1.0, 2.0, 3.0)),
    ]
    return [*_samples(), *values, BASE, *frontier, *others]


def _vas_tuned() -> list[Arm]:
    tried = [
        _value(f"{size} value, lr {rate:g}, {batch} prompts", trunk, learning_rate=rate,
               per_device_train_batch_size=batch)
        for size, trunk, rates in (
            ("7 M", "reward", (3e-4, 1e-3)),
            ("7 M from the policy", "model", (3e-4, 1e-3)),
            ("2 M", "small", (1e-3, 3e-3)),
        )
        for rate, batch in zip(rates, (8, 16), strict=True)
    ]  # fmt: skip
    return [*_samples(), *tried, BASE, _guide(tried[0].name, 50, (2.0, 4.0))]


_CHOSEN = {"proxy_rlhf": _proxy_chosen, "psle": _psle_chosen, "rrhf": _rrhf_chosen, "vas": _vas_chosen}
_TUNED = {"proxy_rlhf": _proxy_tuned, "psle": _psle_tuned, "rrhf": _rrhf_tuned, "vas": _vas_tuned}


def chosen(method: str) -> list[Arm]:
    """The arms of a method's tables, in the order in which they are begun."""
    return _CHOSEN[method]()


def tuned(method: str) -> list[Arm]:
    """The settings tried with one seed."""
    return _TUNED[method]()
