# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Best-of-n: sample n completions of a prompt, score them, keep the best. The baseline of every guided decoding.

[`best_of_n`] returns all of them with their scores; [`best_of_n_policies`] makes policies that evaluation can measure.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from trl_ext.data.completion import Completion
from trl_ext.data.prompts import check_several
from trl_ext.generation_settings import GenerationSettings
from trl_ext.models.load import load_model
from trl_ext.models.tokenizers import load_tokenizer
from trl_ext.rewards.functions import Reward, RewardFunc, load_rewards
from trl_ext.rewards.scoring import ScoredCompletion, check_reward_weights, score_completions
from trl_ext.seeds import seeded

from .policy import Policy, model_policy


def kl_bound(n: int) -> float:
    """
    Upper bound of the KL of best-of-n to the model that it samples from, in nats per completion.

    `log n - (n - 1) / n` (arXiv 2009.01325, appendix G.3). It is the KL itself if all completions have different
    scores and each is improbable (arXiv 2401.01879). It holds for every distribution, reward and prompt, so it is not
    measured.

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
) -> list[list[ScoredCompletion]]:
    """
    Sample n completions of each prompt and score them.

    Args:
        model ([`~trl_ext.inference.policy.Policy`], [`~transformers.PreTrainedModel`] or `str`):
            The policy or model to sample from, or the model's id or directory.
        prompts (`Sequence`):
            Prompts: text, or lists of messages.
        reward_funcs (`Callable`, `str`, [`~transformers.PreTrainedModel`] or a sequence of those):
            One or several rewards, as [`~trl_ext.rewards.functions.load_rewards`] takes them or returns them.
        n (`int`, *optional*, defaults to `16`):
            Completions per prompt.
        processing_class ([`~transformers.PreTrainedTokenizerBase`], *optional*):
            The model's tokenizer. By default it is loaded from the model's id or directory.
        reward_weights (`Sequence[float]`, *optional*):
            One per reward, 1 by default.
        settings ([`~trl_ext.generation_settings.GenerationSettings`], *optional*):
            How to sample; `num_generations` is replaced by `n`. By default temperature 1 and at most 256 tokens.
        columns (`dict[str, Sequence]`, *optional*):
            Further arguments of the rewards, one entry per prompt.
        batch_size (`int`, *optional*, defaults to `64`):
            Sequences that the model generates at once.
        seed (`int`, *optional*, defaults to `42`):
            Seed of the sampling. The state of torch's global generator is restored afterwards.

    Returns:
        `list[list[ScoredCompletion]]`: For each prompt its n completions, the best first; those without a score are
        last.

    Raises:
        `ValueError`: `n` or the settings are out of range, there is no reward, a column has another length, a single
            prompt was passed instead of a list, or a prompt is too long for the model.
        [`~trl_ext.rewards.functions.RewardError`]: A reward function failed.
    """
    check_several(prompts)
    policy = model if isinstance(model, Policy) else _load_policy(model, processing_class, batch_size)
    rows = [{"prompt": prompt} for prompt in prompts]
    for name, values in (columns or {}).items():
        if len(values) != len(rows):
            raise ValueError(f"Column {name!r} has {len(values)} entries for {len(rows)} prompts.")
        rows = [row | {name: value} for row, value in zip(rows, values, strict=True)]
    if not rows:
        return []
    rewards = _load_rewards(reward_funcs)
    check_reward_weights(reward_weights, [reward.name for reward in rewards])
    settings = _with_num_generations(settings or GenerationSettings(), n)
    prompt_ids = policy.encode_rows(rows)
    policy.check_context_length(prompt_ids, settings)
    with seeded(seed, 0, 0):
        completions = policy.generate(prompt_ids, settings)
    scored = score_completions(rows, completions, rewards, reward_weights)
    return [sorted(group, key=_rank) for group in scored]


def best_of_n_policies(
    policy: Policy,
    rows: Sequence[dict[str, Any]],
    rewards: Sequence[Reward],
    ns: Sequence[int],
    *,
    reward_weights: Sequence[float] | None = None,
) -> list[Policy]:
    """
    Best-of-n as policies for evaluation, one for each n, over the same sampled completions.

    Each prompt gets as many completions as the largest n. A smaller n divides them into disjoint groups and returns
    the best of each group: independent samples of best-of-n, whose mean is unbiased and less noisy than a single one.
    So a policy may return more than `num_generations` completions, and it only accepts the prompts of `rows`.

    Their KL is the bound of [`kl_bound`], which is not measured.

    Args:
        policy ([`~trl_ext.inference.policy.Policy`]):
            The policy to sample from.
        rows (`Sequence[dict[str, Any]]`):
            The rows that the policies will be measured on, with a `prompt` and the columns that the rewards use.
        rewards (`Sequence[Reward]`):
            The rewards that decide which completion is best.
        ns (`Sequence[int]`):
            The values of n.
        reward_weights (`Sequence[float]`, *optional*):
            One per reward, 1 by default.

    Raises:
        `ValueError`: There is no reward, or an n is below 1.
    """
    check_reward_weights(reward_weights, [reward.name for reward in _load_rewards(rewards)])
    pool = _Pool(policy, list(rows), list(rewards), reward_weights, max(ns, default=1))
    return [pool.policy_of(n) for n in dict.fromkeys(ns)]


class _Pool:
    """Completions that are sampled and scored once, at the first request."""

    def __init__(
        self,
        policy: Policy,
        rows: list[dict[str, Any]],
        rewards: list[Reward],
        weights: Sequence[float] | None,
        largest_n: int,
    ) -> None:
        self.policy, self.rows, self.rewards, self.weights = policy, rows, rewards, weights
        self.largest_n = largest_n
        self._settings: GenerationSettings | None = None
        self._scored: list[list[ScoredCompletion]] = []
        self._by_id: dict[int, ScoredCompletion] = {}  # by the id of the completion, which the pool keeps

    def policy_of(self, n: int) -> Policy:
        def generate(prompt_ids: list[list[int]], settings: GenerationSettings) -> list[list[Completion]]:
            return [_best_of_groups(group, n) for group in self.scored(prompt_ids, settings)]

        return Policy(
            name=f"{self.policy.name} best of {n}",
            tokenizer=self.policy.tokenizer,
            generate=generate,
            scored=self.known,
            extras={"n": n},
            kl_bound=kl_bound(n),
            series="best-of-n",
            method="best-of-n",
            context=self.policy.context,
            sees_row=self.policy.sees_row,
        )

    def scored(self, prompt_ids: list[list[int]], settings: GenerationSettings) -> list[list[ScoredCompletion]]:
        if len(prompt_ids) != len(self.rows):
            raise ValueError(f"best-of-n was made for {len(self.rows)} rows, but is asked for {len(prompt_ids)}.")
        if settings != self._settings:
            enough = _with_num_generations(settings, settings.num_generations * self.largest_n)
            completions = self.policy.generate(prompt_ids, enough)
            self._scored = score_completions(self.rows, completions, self.rewards, self.weights)
            self._by_id = {id(each.completion): each for group in self._scored for each in group}
            self._settings = settings
        return self._scored

    def known(
        self, completions: list[list[Completion]], rewards: Sequence[Reward]
    ) -> list[list[ScoredCompletion]] | None:
        """The scores of completions of the pool, if these are the rewards that they were scored with."""
        unknown = any(id(completion) not in self._by_id for group in completions for completion in group)
        if unknown or list(rewards) != self.rewards:
            return None
        return [[self._by_id[id(each)] for each in group] for group in completions]


def _best_of_groups(completions: Sequence[ScoredCompletion], n: int) -> list[Completion]:
    """The best of each disjoint group of n; a remainder of fewer than n is not used."""
    best = []
    for start in range(0, len(completions) - n + 1, n):
        best.append(min(completions[start : start + n], key=_rank).completion)
    return best


def _rank(scored: ScoredCompletion) -> float:
    """Sort key: the best first, equal scores in the order in which they were sampled, those without a score last."""
    return math.inf if math.isnan(scored.score) else -scored.score


def _with_num_generations(settings: GenerationSettings, n: int) -> GenerationSettings:
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}.")
    return dataclasses.replace(settings, num_generations=n)


def _load_rewards(reward_funcs: Any) -> list[Reward]:
    several = isinstance(reward_funcs, Sequence) and not isinstance(reward_funcs, str)
    specs = list(reward_funcs) if several else [reward_funcs]
    if not specs:
        raise ValueError("best-of-n needs a reward to decide which is best: pass at least one reward function.")
    return specs if all(isinstance(spec, Reward) for spec in specs) else load_rewards(specs)


def _load_policy(model: PreTrainedModel | str, tokenizer: PreTrainedTokenizerBase | None, batch_size: int) -> Policy:
    name = model if isinstance(model, str) else str(getattr(model.config, "name_or_path", "") or "model")
    if tokenizer is None:
        if name == "model":
            raise ValueError("the model has no name to load a tokenizer from: pass it as `processing_class`.")
        tokenizer = load_tokenizer(name)
    if isinstance(model, str):
        model = load_model(model).eval()
    return model_policy(model, tokenizer, name=name, batch_size=batch_size)
