# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Evaluates policies on prompts: rewards, KL to the base model, perplexity, diversity and length of completions.

[`evaluate`] evaluates any [`~trl_ext.inference.policy.Policy`], [`evaluate_model`] a transformers model. `metrics.py`
defines the statistics.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from trl_ext.data.completion import Completion, encode_after
from trl_ext.data.schema import DataError, where
from trl_ext.generation_settings import GenerationSettings
from trl_ext.inference.policy import Policy, model_policy
from trl_ext.models.properties import is_peft_model
from trl_ext.models.tokenizers import can_read
from trl_ext.rewards.functions import Reward
from trl_ext.rewards.scoring import ScoredCompletion, score_completions
from trl_ext.seeds import fork_rng

from .metrics import distinct_n_and_se, finite, mean_and_se, perplexity_and_se, response_kl


@dataclass
class Evaluation:
    """
    Result of [`evaluate`].

    Parameters:
        metrics (`dict[str, float | None]`):
            `reward/<name>`, `kl`, `perplexity`, `distinct_2`, `completion_length` and `ended`, each followed by its
            standard error `<key>_se`. `None` if undefined or not measured; `notes` has the reason. A policy of whose
            KL only an upper bound is known has the metric `kl_bound`. One that is guided at some tokens only has
            `guided_tokens`, without a standard error.
        notes (`dict[str, str]`):
            By metric, why it is missing or which completions it ignores.
        completions (`list[list[Completion]]`):
            The evaluated completions of each prompt.
        rewards (`dict[str, list[list[float]]]`):
            By name, the reward of each completion of each prompt; NaN if the function does not apply.
        scores (`list[list[float]]`):
            The weighted sum of the rewards of each completion of each prompt.
        extra (`dict[str, list[list]]`):
            By column, what reward functions gave to `log_extra` for each completion of each prompt.
        logps (`dict[str, list[list[float]]]`):
            Under `"policy"` and `"base"` the log-probability of each completion of each prompt, in nats, at
            temperature 1 without top-k, top-p and the like; empty where it was not computed.
        kl_completions (`list[list[Completion]]`):
            The completions of each prompt that the KL was estimated from, if they are not the evaluated ones.
        kl_logps (`dict[str, list[list[float]]]`):
            As `logps`, of `kl_completions`.
        prompt_lengths (`list[int]`):
            Number of tokens of each prompt.
        seconds (`float`):
            Wall time of generating the completions.
    """

    metrics: dict[str, float | None] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    completions: list[list[Completion]] = field(default_factory=list)
    rewards: dict[str, list[list[float]]] = field(default_factory=dict)
    scores: list[list[float]] = field(default_factory=list)
    extra: dict[str, list[list[Any]]] = field(default_factory=dict)
    logps: dict[str, list[list[float]]] = field(default_factory=dict)
    kl_completions: list[list[Completion]] = field(default_factory=list)
    kl_logps: dict[str, list[list[float]]] = field(default_factory=dict)
    prompt_lengths: list[int] = field(default_factory=list)
    seconds: float = field(default=0.0, compare=False)

    def record(self, key: str, value_and_se: tuple[float, float]) -> None:
        """Store a metric and its standard error. Non-finite values become `None`, because JSON does not have them."""
        for name, value in zip((key, f"{key}_se"), value_and_se, strict=True):
            self.metrics[name] = finite(value)

    def skip_metric(self, key: str, reason: str) -> None:
        """Store `None` for a metric, and the reason as its note."""
        self.record(key, (math.nan, math.nan))
        self.notes[key] = reason


def untruncated(settings: GenerationSettings) -> GenerationSettings:
    """
    Settings for the completions that the KL is estimated from: as many, of the same length, at temperature 1.

    Without top-k, top-p and the like, so that they are samples of the policy's own distribution.
    """
    return GenerationSettings(
        num_generations=settings.num_generations, max_completion_length=settings.max_completion_length
    )


def evaluate_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[dict[str, Any]],
    rewards: Sequence[Reward] = (),
    *,
    settings: GenerationSettings,
    base_model: PreTrainedModel | None = None,
    judge_model: PreTrainedModel | None = None,
    judge_tokenizer: PreTrainedTokenizerBase | None = None,
    batch_size: int = 64,
    seed: int = 42,
    **kwargs: Any,
) -> Evaluation:
    """
    Evaluate a transformers model on prompts. See [`evaluate`] for the metrics and the errors.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]): The model.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): Tokenizer of the model and of `base_model`.
        rows (`Sequence[dict[str, Any]]`): Rows with a `prompt` and the columns that the rewards use.
        rewards (`Sequence[Reward]`, *optional*): From [`~trl_ext.rewards.functions.load_rewards`].
        settings ([`~trl_ext.generation_settings.GenerationSettings`]): How to generate completions.
        base_model ([`~transformers.PreTrainedModel`], *optional*): Reference model of the KL. By default a
            [`~peft.PeftModel`] without its adapter; any other model has no KL by default.
        judge_model ([`~transformers.PreTrainedModel`], *optional*): Model that computes the perplexity. By default the
            base model.
        judge_tokenizer ([`~transformers.PreTrainedTokenizerBase`], *optional*): Its tokenizer. By default `tokenizer`.
        batch_size (`int`, *optional*, defaults to `64`): Sequences to generate or score at once.
        seed (`int`, *optional*, defaults to `42`): Seed of the sampling.
        kwargs: Passed to [`evaluate`].
    """
    policy = model_policy(model, tokenizer, batch_size=batch_size)
    base = judge = None
    if base_model is model:
        base = policy
    elif base_model is not None:
        base = model_policy(base_model, tokenizer, name="base", batch_size=batch_size)
    elif is_peft_model(model):
        base = model_policy(model, tokenizer, name="base", batch_size=batch_size, use_adapter=False)
    if judge_model is not None:
        judge = model_policy(judge_model, judge_tokenizer or tokenizer, name="judge", batch_size=batch_size)
    return evaluate(policy, rows, rewards, settings=settings, base=base, judge=judge, seed=seed, **kwargs)


def evaluate(
    policy: Policy,
    rows: Sequence[dict[str, Any]],
    rewards: Sequence[Reward] = (),
    *,
    settings: GenerationSettings,
    base: Policy | None = None,
    judge: Policy | None = None,
    reward_weights: Sequence[float] | None = None,
    keep_logps: bool = False,
    kl_prompts: int | None = None,
    seed: int = 42,
) -> Evaluation:
    """
    Evaluate a policy on prompts.

    - `reward/<name>`: [`~trl_ext.evaluation.metrics.mean_and_se`] of each reward of the completions.
    - `metric/<name>`: mean of the values that reward functions gave to `log_metric`.
    - `kl`: mean of [`~trl_ext.evaluation.metrics.response_kl`] to `base`, in nats per response of at most
      `max_completion_length` tokens. The responses are sampled from the policy at temperature 1, without top-k, top-p
      and the like. They are generated in addition to the completions unless `settings` are the same. The KL is exactly
      0 if `base` is `policy`. A policy that has a `kl_bound` instead of log-probabilities gets the metric `kl_bound`.
      One that has `own_kl` gets the mean of its completions' own `kl`, as `kl` or as `kl_bound`, also without `base`.
    - `perplexity`: [`~trl_ext.evaluation.metrics.perplexity_and_se`] of the completions under `judge`, given their
      prompts. For a judge with another vocabulary, the completions are tokenized again; its perplexity is per token of
      its own.
    - `distinct_2`: [`~trl_ext.evaluation.metrics.distinct_n_and_se`] of the completions' tokens. It depends on the
      number of completions, so only the first `num_generations` of each prompt count if a policy returns more.
    - `completion_length`: number of tokens of a completion, including the end-of-sequence token.
    - `ended`: share of completions that end with an end-of-sequence token within `max_completion_length`.
    - `guided_tokens`: share of the completions' tokens that are guided, for a policy that is guided at some of them.

    The same seed gives the same numbers on the same machine with the same batch size. The state of torch's global
    generator is restored afterwards.

    Args:
        policy ([`~trl_ext.inference.policy.Policy`]): The policy to evaluate.
        rows (`Sequence[dict[str, Any]]`): Rows with a `prompt` and the columns that the rewards use.
        rewards (`Sequence[Reward]`, *optional*): From [`~trl_ext.rewards.functions.load_rewards`].
        settings ([`~trl_ext.generation_settings.GenerationSettings`]): How to generate completions.
        base ([`~trl_ext.inference.policy.Policy`], *optional*): Reference policy of the KL.
        judge ([`~trl_ext.inference.policy.Policy`], *optional*): Policy that computes the perplexity. By default
            `base`.
        reward_weights (`Sequence[float]`, *optional*): One per reward, 1 by default, for the `scores` of the result.
        keep_logps (`bool`, *optional*, defaults to `False`): Whether to compute the `logps` of the completions also
            where no metric needs them, under the policy and the base.
        kl_prompts (`int`, *optional*): Number of prompts, the first ones, on which the KL is measured. By default all
            of them; `0` measures no KL.
        seed (`int`, *optional*, defaults to `42`): Seed of the sampling.

    Raises:
        [`~trl_ext.data.schema.DataError`]: There are no rows, a row has no prompt, or a prompt is too long for the
            policy.
        [`~trl_ext.rewards.functions.RewardError`]: A reward function failed.
    """
    if not rows:
        raise DataError("There is no prompt to evaluate on: the dataset is empty.")
    for index, row in enumerate(rows):
        if row.get("prompt") is None:
            raise DataError(f"{where(index)} has no prompt. Its columns are: {', '.join(sorted(row))}.")
    if base is not None and base is not policy and base.logps is not None and judge in (None, base):
        base = judge = replace(base, logps=_KeptLogps(base.logps))
    prompt_ids = policy.encode_rows(rows)
    policy.check_context_length(prompt_ids, settings)
    result = Evaluation(prompt_lengths=[len(ids) for ids in prompt_ids])
    if policy.guided is not None:
        policy.guided.clear()
    started = time.perf_counter()
    with fork_rng(seed):
        result.completions = policy.generate(prompt_ids, settings)
    result.seconds = time.perf_counter() - started
    if policy.guided is not None:
        result.metrics["guided_tokens"] = finite(policy.guided.share)
    ids = _ids(result.completions)

    scored = None if policy.scored is None else policy.scored(result.completions, rewards)
    measure_rewards(result, rows, rewards, reward_weights, scored)
    _measure_kl(result, policy, base, prompt_ids[:kl_prompts], settings, seed)
    _measure_perplexity(result, policy, base, judge or base, rows, prompt_ids)
    if keep_logps:
        _measure_logps(result, policy, base, prompt_ids)
    result.record("distinct_2", distinct_n_and_se([row[: settings.num_generations] for row in ids]))
    if result.metrics["distinct_2"] is None:
        result.notes["distinct_2"] = "not defined: no completion has two tokens"
    result.record("completion_length", mean_and_se([[float(len(x)) for x in row] for row in ids]))
    result.record("ended", mean_and_se([[float(x.ended) for x in row] for row in result.completions]))
    if len(rows) == 1:
        result.notes["se"] = "no standard errors: they need at least two prompts"
    return result


class _KeptLogps:
    """
    Log-probabilities of the last call, for the next one with the same tokens: those that the KL and the perplexity are
    both computed from.
    """

    def __init__(self, logps: Callable[..., list[list[torch.Tensor]]]) -> None:
        self.logps = logps
        self._last: tuple[Any, list[list[torch.Tensor]]] | None = None

    def __call__(self, prompt_ids: list[list[int]], completion_ids: list[list[list[int]]]) -> list[list[torch.Tensor]]:
        if self._last is None or self._last[0] != (prompt_ids, completion_ids):
            self._last = (prompt_ids, completion_ids), self.logps(prompt_ids, completion_ids)
        return self._last[1]


def measure_rewards(
    result: Evaluation,
    rows: Sequence[dict[str, Any]],
    rewards: Sequence[Reward],
    weights: Sequence[float] | None = None,
    scored: list[list[ScoredCompletion]] | None = None,
) -> None:
    """
    Score the completions of an evaluation, and store rewards and their metrics in it.

    Args:
        result ([`Evaluation`]): An evaluation with completions.
        rows (`Sequence[dict[str, Any]]`): The rows that the completions belong to.
        rewards (`Sequence[Reward]`): May be empty.
        weights (`Sequence[float]`, *optional*): One per reward, 1 by default.
        scored (`list[list[ScoredCompletion]]`, *optional*): The scores, if they are known.

    Raises:
        [`~trl_ext.rewards.functions.RewardError`]: A reward function failed.
    """
    if not rewards:
        return
    metrics: dict[str, list[float]] = {}
    if scored is None:
        scored = score_completions(rows, result.completions, rewards, weights, metrics=metrics)
    result.scores = [[completion.score for completion in group] for group in scored]
    for name, logged in metrics.items():
        result.metrics[f"metric/{name}"] = finite(sum(logged) / len(logged))
    for name in dict.fromkeys(name for group in scored for completion in group for name in completion.extra):
        result.extra[name] = [[completion.extra.get(name) for completion in group] for group in scored]
    for reward in rewards:
        key = f"reward/{reward.name}"
        values = [[completion.rewards[reward.name] for completion in group] for group in scored]
        result.rewards[reward.name] = values
        result.record(key, mean_and_se(values))
        missing = sum(math.isnan(value) for group in values for value in group)
        if missing:
            result.notes[key] = f"not defined for {missing} of {sum(map(len, values))} completions"


def _measure_kl(
    result: Evaluation,
    policy: Policy,
    base: Policy | None,
    prompt_ids: list[list[int]],
    settings: GenerationSettings,
    seed: int,
) -> None:
    if base is policy:
        return result.record("kl", (0.0, 0.0))
    if policy.own_kl and prompt_ids:
        return _record_own_kl(result, policy.own_kl, _kl_completions(result, policy, prompt_ids, settings, seed))
    if base is None:
        return result.skip_metric("kl", "no base model was named")
    if not prompt_ids:
        return result.skip_metric("kl", "not measured: `kl_prompts` is 0")
    if policy.logps is None and policy.kl_bound is not None:
        result.metrics["kl_bound"] = policy.kl_bound
        return result.skip_metric("kl", f"not measured; at most {policy.kl_bound:.2f} nats")
    if policy.logps is None:
        return result.skip_metric("kl", "it has no log-probabilities")
    if base.logps is None:
        return result.skip_metric("kl", "the base has no log-probabilities")
    unreadable = f"{base.name} has another vocabulary"
    if not can_read(base.tokenizer, policy.tokenizer, prompt_ids):
        return result.skip_metric("kl", unreadable)
    ids = _ids(_kl_completions(result, policy, prompt_ids, settings, seed))
    others = len(result.completions) - len(prompt_ids)  # prompts after those of the KL
    if not can_read(base.tokenizer, policy.tokenizer, chain.from_iterable(ids)):
        return result.skip_metric("kl", unreadable)
    logps, base_logps = policy.logps(prompt_ids, ids), base.logps(prompt_ids, ids)
    found = {"policy": _sums(logps), "base": _sums(base_logps)}
    if result.kl_completions:
        result.kl_logps = {name: [*sums, *([] for _ in range(others))] for name, sums in found.items()}
    elif not others:
        result.logps |= found
    kl = [response_kl(*pair) for pair in zip(logps, base_logps, strict=True)]
    notes = _first_prompts(result, prompt_ids)
    if infinite := sum(not math.isfinite(value) for group in kl for value in group):
        notes.append(
            f"not defined: {infinite} of {sum(map(len, kl))} completions have no probability when they are read again"
        )
    if notes:
        result.notes["kl"] = "; ".join(notes)
    return result.record("kl", mean_and_se(kl))


def _kl_completions(
    result: Evaluation, policy: Policy, prompt_ids: list[list[int]], settings: GenerationSettings, seed: int
) -> list[list[Completion]]:
    """The completions that the KL is measured on: those of the evaluation, or others that are not truncated."""
    if settings == untruncated(settings):
        return result.completions[: len(prompt_ids)]
    with fork_rng(seed):
        completions = policy.generate(prompt_ids, untruncated(settings))
    result.kl_completions = [*completions, *([] for _ in result.completions[len(prompt_ids) :])]
    return completions


def _record_own_kl(result: Evaluation, kind: str, completions: list[list[Completion]]) -> None:
    """The KL of a policy that computes it while it generates, or its upper bound."""
    found = mean_and_se([[math.nan if x.kl is None else x.kl for x in row] for row in completions])
    notes = _first_prompts(result, completions)
    if kind == "exact":
        result.record("kl", found)
    else:
        result.metrics["kl_bound"] = finite(found[0])
        result.skip_metric("kl", f"not measured; at most {found[0]:.2f} nats")
    if notes:
        result.notes["kl"] = "; ".join(filter(None, [result.notes.get("kl", ""), *notes]))


def _first_prompts(result: Evaluation, measured: Sequence[Any]) -> list[str]:
    """A note if the KL was measured on the first prompts only."""
    total = len(result.completions)
    return [f"of the first {len(measured)} of {total} prompts"] if len(measured) < total else []


def _measure_logps(result: Evaluation, policy: Policy, base: Policy | None, prompt_ids: list[list[int]]) -> None:
    """Log-probabilities of the evaluated completions, as far as neither KL nor perplexity needed them."""
    ids = _ids(result.completions)
    if "policy" not in result.logps and policy.logps is not None:
        result.logps["policy"] = _sums(policy.logps(prompt_ids, ids))
    if "base" in result.logps or base is None or base.logps is None:
        return
    if base is policy:
        result.logps["base"] = result.logps["policy"]
    elif can_read(base.tokenizer, policy.tokenizer, chain(prompt_ids, *ids)):
        result.logps["base"] = _sums(base.logps(prompt_ids, ids))


def _measure_perplexity(
    result: Evaluation,
    policy: Policy,
    base: Policy | None,
    judge: Policy | None,
    rows: Sequence[dict[str, Any]],
    prompt_ids: list[list[int]],
) -> None:
    if judge is None or judge.logps is None:
        return result.skip_metric("perplexity", "no judge model was named")
    ids = _ids(result.completions)
    same_tokens = can_read(judge.tokenizer, policy.tokenizer, chain(prompt_ids, *ids))
    if not same_tokens:
        prompt_ids = judge.encode_rows(rows)
        ids = [[_retokenized(completion, judge.tokenizer) for completion in group] for group in result.completions]
    logps = judge.logps(prompt_ids, ids)
    if judge is base and same_tokens:
        names = ("policy", "base") if base is policy else ("base",)
        result.logps |= dict.fromkeys(names, _sums(logps))
    result.record("perplexity", perplexity_and_se(logps))
    if result.metrics["perplexity"] is None:
        tokens = any(len(of_tokens) for group in logps for of_tokens in group)
        reason = "a completion has no probability" if tokens else "no completion has a token"
        result.notes["perplexity"] = f"not defined: {reason} under {judge.name}"


def _retokenized(completion: Completion, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Token ids of a completion under another tokenizer; may be empty."""
    ids = encode_after(tokenizer, completion.text)
    return [*ids, tokenizer.eos_token_id] if completion.ended and tokenizer.eos_token_id is not None else ids


def _sums(logps: list[list[torch.Tensor]]) -> list[list[float]]:
    return [[of_tokens.double().sum().item() for of_tokens in group] for group in logps]


def _ids(groups: list[list[Completion]]) -> list[list[list[int]]]:
    return [[completion.ids for completion in group] for group in groups]
