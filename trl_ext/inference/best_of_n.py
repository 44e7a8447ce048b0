# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Best-of-n: draw n completions of a prompt, score them, take the best. The baseline of everything that steers.

[`best_of_n`] returns all of them with their scores; [`best_of_n_policies`] are what evaluation measures.
"""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from trl_ext.data.completion import Completion
from trl_ext.data.prompts import check_several
from trl_ext.data.tokenization import encode_prompt
from trl_ext.generation_settings import GenerationSettings
from trl_ext.models.load import load_model
from trl_ext.models.tokenizers import load_tokenizer
from trl_ext.rewards.functions import Reward, RewardFunc, load_rewards
from trl_ext.rewards.scoring import check_reward_weights, score_completions
from trl_ext.seeds import seeded
from trl_ext.upstream import get_config_model_id

from .policy import Policy, model_policy


@dataclass(frozen=True)
class Scored:
    """
    A completion and what it is worth.

    Args:
        completion ([`~trl_ext.generation.generate.Completion`]): Text, token ids, and whether it ended.
        score (`float`): Weighted sum of its rewards; NaN where no reward function applied.
        rewards (`dict[str, float]`): Each function's reward by name, unweighted; NaN where it did not apply.
    """

    completion: Completion
    score: float
    rewards: dict[str, float]

    @property
    def text(self) -> str:
        """Text of the completion."""
        return self.completion.text


def kl_bound(n: int) -> float:
    """
    Upper bound of the KL of best-of-n to the model that it draws from, in nats a response.

    `log n - (n - 1) / n` (arXiv 2009.01325, appendix G.3); the KL itself where all responses are scored differently
    and each is improbable (arXiv 2401.01879). It holds for whatever distribution the n are drawn from, the reward and
    the prompt: it is not measured.

    Raises:
        `ValueError`: `n` is below 1.
    """
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}.")
    return math.log(n) - (n - 1) / n


def best_of_n(
    model: Policy | PreTrainedModel | str,
    prompts: Sequence[str | list[dict[str, str]]],
    reward_funcs: RewardFunc | Sequence[RewardFunc] | Sequence[Reward],
    n: int = 16,
    *,
    processing_class: PreTrainedTokenizerBase | None = None,
    reward_weights: Sequence[float] | None = None,
    settings: GenerationSettings | None = None,
    columns: dict[str, Sequence[Any]] | None = None,
    batch_size: int = 64,
    seed: int = 42,
) -> list[list[Scored]]:
    """
    Draw n completions of each prompt and score them.

    Args:
        model ([`~trl_ext.inference.policy.Policy`], [`~transformers.PreTrainedModel`] or `str`):
            What to draw from: whatever answers prompts, a model, or its id or directory.
        prompts (`Sequence`):
            Prompts: text, or lists of messages.
        reward_funcs (`Callable`, `str`, [`~transformers.PreTrainedModel`] or a sequence of those):
            One or several rewards, as [`~trl_ext.rewards.functions.load_rewards`] takes them (or returns them).
        n (`int`, *optional*, defaults to `16`):
            Completions of a prompt.
        processing_class ([`~transformers.PreTrainedTokenizerBase`], *optional*):
            The model's tokenizer. By default that of its directory or id.
        reward_weights (`Sequence[float]`, *optional*):
            One a reward, 1 by default.
        settings ([`~trl_ext.generation.generate.GenerationSettings`], *optional*):
            How to draw; its `num_generations` gives way to `n`. By default at temperature 1, 256 tokens at most.
        columns (`dict[str, Sequence]`, *optional*):
            What else the rewards take, one entry a prompt.
        batch_size (`int`, *optional*, defaults to `64`):
            Sequences that a model writes at once.
        seed (`int`, *optional*, defaults to `42`):
            Seed of the draws. torch's global generator is left as it was found.

    Returns:
        `list[list[Scored]]`: For each prompt its n completions, the best first; those without a score come last.

    Raises:
        `ValueError`: `n` or the settings cannot be had, there is no reward, a list has another length, a single
            prompt was passed, or one is too long for the model.
        [`~trl_ext.rewards.functions.RewardError`]: A reward function failed.
    """
    check_several(prompts)
    policy = model if isinstance(model, Policy) else _model_policy(model, processing_class, batch_size)
    rows = [{"prompt": prompt} for prompt in prompts]
    for name, values in (columns or {}).items():
        if len(values) != len(rows):
            raise ValueError(f"Column {name!r} has {len(values)} entries for {len(rows)} prompts.")
        rows = [row | {name: value} for row, value in zip(rows, values, strict=True)]
    if not rows:
        return []
    rewards = _loaded(reward_funcs)
    check_reward_weights(reward_weights, [reward.name for reward in rewards])
    settings = _with_n(settings or GenerationSettings(), n)
    ids = [encode_prompt(policy.tokenizer, prompt) for prompt in prompts]
    policy.check_context_length(ids, settings)
    with seeded(seed, 0, 0):
        drawn = policy.generate(ids, settings)
    return [sorted(row, key=_rank) for row in _scored(rows, drawn, rewards, reward_weights)]


def best_of_n_policies(
    policy: Policy,
    rows: Sequence[dict[str, Any]],
    rewards: Sequence[Reward],
    ns: Sequence[int],
    *,
    reward_weights: Sequence[float] | None = None,
) -> list[Policy]:
    """
    Best-of-n as evaluation sees it, one [`~trl_ext.inference.policy.Policy`] for each n, over one draw for all of
    them.

    Of a prompt, as many completions are drawn as the largest n takes. A smaller n divides them into disjoint groups
    and returns the best of each: independent draws of best-of-n, whose mean is without bias and has less noise than a
    single one. So a policy may return more than `num_generations` completions, and answers `rows` and nothing else.

    Their KL is the bound of [`kl_bound`], which is not measured.

    Args:
        policy ([`~trl_ext.inference.policy.Policy`]): What to draw from.
        rows (`Sequence[dict[str, Any]]`): The rows that will be asked for, with a `prompt` and what the rewards take.
        rewards (`Sequence[Reward]`): What decides which is best.
        ns (`Sequence[int]`): The n.
        reward_weights (`Sequence[float]`, *optional*): One a reward, 1 by default.

    Raises:
        `ValueError`: There is no reward, or an n below 1.
    """
    check_reward_weights(reward_weights, [reward.name for reward in _loaded(rewards)])
    pool = _Pool(policy, list(rows), list(rewards), reward_weights, max(ns, default=1))
    return [pool.policy_of(n) for n in dict.fromkeys(ns)]


class _Pool:
    """Completions that are drawn and scored once, when they are first asked for."""

    def __init__(
        self,
        policy: Policy,
        rows: list[dict[str, Any]],
        rewards: list[Reward],
        weights: Sequence[float] | None,
        most: int,
    ) -> None:
        self.policy, self.rows, self.rewards, self.weights, self.most = policy, rows, rewards, weights, most
        self._settings: GenerationSettings | None = None
        self._scored: list[list[Scored]] = []

    def policy_of(self, n: int) -> Policy:
        bound = kl_bound(n)

        def generate(prompt_ids: list[list[int]], settings: GenerationSettings) -> list[list[Completion]]:
            return [_best_of_groups(row, n) for row in self.drawn(prompt_ids, settings)]

        return Policy(
            name=f"{self.policy.name} best of {n}",
            tokenizer=self.policy.tokenizer,
            generate=generate,
            extras={"n": n},
            kl_bound=bound,
            series="best-of-n",
            context=self.policy.context,
        )

    def drawn(self, prompt_ids: list[list[int]], settings: GenerationSettings) -> list[list[Scored]]:
        if len(prompt_ids) != len(self.rows):
            raise ValueError(f"best-of-n was made for {len(self.rows)} rows, but is asked for {len(prompt_ids)}.")
        if settings != self._settings:
            drawn = self.policy.generate(prompt_ids, _with_n(settings, settings.num_generations * self.most))
            self._scored = _scored(self.rows, drawn, self.rewards, self.weights)
            self._settings = settings
        return self._scored


def _best_of_groups(row: Sequence[Scored], n: int) -> list[Completion]:
    """The best of each disjoint group of n; what is left over after the last whole group is not used."""
    groups = [row[start : start + n] for start in range(0, len(row) - n + 1, n)]
    return [min(group, key=_rank).completion for group in groups]


def _rank(scored: Scored) -> float:
    """Sorts the best first, equals in the order in which they were drawn, and those without a score last."""
    return math.inf if math.isnan(scored.score) else -scored.score


def _scored(
    rows: Sequence[dict[str, Any]],
    drawn: list[list[Completion]],
    rewards: Sequence[Reward],
    weights: Sequence[float] | None,
) -> list[list[Scored]]:
    table = score_completions(rows, drawn, rewards, weights)
    numbers = iter(range(len(table.total)))
    return [
        [
            Scored(completion, table.total[i], {name: values[i] for name, values in table.by_name.items()})
            for completion, i in zip(row, numbers, strict=False)
        ]
        for row in drawn
    ]


def _with_n(settings: GenerationSettings, n: int) -> GenerationSettings:
    kl_bound(n)  # refuses what is no n
    return dataclasses.replace(settings, num_generations=n)


def _loaded(reward_funcs: Any) -> list[Reward]:
    several = isinstance(reward_funcs, Sequence) and not isinstance(reward_funcs, str)
    specs = list(reward_funcs) if several else [reward_funcs]
    if not specs:
        raise ValueError("best-of-n needs a reward to tell which is best: pass one reward function at least.")
    return specs if all(isinstance(spec, Reward) for spec in specs) else load_rewards(specs)


def _model_policy(model: PreTrainedModel | str, tokenizer: PreTrainedTokenizerBase | None, batch_size: int) -> Policy:
    name = model if isinstance(model, str) else (get_config_model_id(model.config) or "model")
    if tokenizer is None:
        if name == "model":
            raise ValueError("the model says not where it is from: pass its tokenizer as processing_class.")
        tokenizer = load_tokenizer(name)
    if isinstance(model, str):
        model = load_model(model).eval()
    return model_policy(model, tokenizer, name=name, batch_size=batch_size)
