# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""What a model does on prompts: rewards, KL to its base, perplexity, diversity, length.

[`evaluate`] measures a [`~trl_ext.inference.policy.Policy`], which may be anything that answers prompts;
[`evaluate_model`] is the usual case of a transformers model. `metrics.py` defines the numbers.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from trl_ext.data.completion import Completion
from trl_ext.data.schema import DataError
from trl_ext.generation_settings import GenerationSettings
from trl_ext.inference.policy import Policy, model_policy
from trl_ext.models.load import is_peft_model
from trl_ext.models.tokenizers import can_read
from trl_ext.rewards.functions import Reward
from trl_ext.rewards.scoring import score_completions
from trl_ext.seeds import fork_rng

from .metrics import distinct_n_and_se, mean_and_se, perplexity_and_se, response_kl


@dataclass
class Evaluation:
    """
    What [`evaluate`] found.

    Parameters:
        metrics (`dict[str, float | None]`):
            `reward/<name>`, `kl`, `perplexity`, `distinct_2`, `completion_length` and `ended`, each followed by its
            standard error `<key>_se`. `None` where there is no number; `notes` says why. A policy whose KL is only
            known to be below a number has that as `kl_bound`.
        notes (`dict[str, str]`):
            Why a metric is missing, or on how little it rests.
        completions (`list[list[Completion]]`):
            The completions that were measured, for each prompt.
        rewards (`dict[str, list[list[float]]]`):
            By name the reward of each completion of each prompt; NaN where the function gave none.
        seconds (`float`):
            Wall time that drawing the completions took.
    """

    metrics: dict[str, float | None] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    completions: list[list[Completion]] = field(default_factory=list)
    rewards: dict[str, list[list[float]]] = field(default_factory=dict)
    seconds: float = field(default=0.0, compare=False)

    def record(self, key: str, value_and_se: tuple[float, float]) -> None:
        """Store a metric and its standard error; a number that is not finite becomes `None`, as JSON has none."""
        for name, value in zip((key, f"{key}_se"), value_and_se, strict=True):
            self.metrics[name] = value if math.isfinite(value) else None

    def skip_metric(self, key: str, reason: str) -> None:
        """Store that there is no such metric, and why."""
        self.record(key, (math.nan, math.nan))
        self.notes[key] = reason


def untruncated(settings: GenerationSettings) -> GenerationSettings:
    """As many completions of the same length, drawn from the policy's distribution as it is: what a KL is made of."""
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
) -> Evaluation:
    """
    Measure a transformers model on prompts. See [`evaluate`] for the metrics and the errors.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]): The model.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): Its tokenizer, and that of `base_model`.
        rows (`Sequence[dict[str, Any]]`): Rows with a `prompt`, and whatever columns the rewards take.
        rewards (`Sequence[Reward]`, *optional*): From [`~trl_ext.rewards.functions.load_rewards`].
        settings ([`~trl_ext.generation.generate.GenerationSettings`]): How completions are drawn.
        base_model ([`~transformers.PreTrainedModel`], *optional*): The model that the KL is measured to. A
            [`~peft.PeftModel`] is by default measured against itself without its adapter; any other model has no KL
            by default.
        judge_model ([`~transformers.PreTrainedModel`], *optional*): The model that the perplexity is measured under.
            By default the base.
        judge_tokenizer ([`~transformers.PreTrainedTokenizerBase`], *optional*): Its tokenizer, if not `tokenizer`.
        batch_size (`int`, *optional*, defaults to `64`): Sequences that are generated or scored at once.
        seed (`int`, *optional*, defaults to `42`): Seed of the draws.
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
    return evaluate(policy, rows, rewards, settings=settings, base=base, judge=judge, seed=seed)


def evaluate(
    policy: Policy,
    rows: Sequence[dict[str, Any]],
    rewards: Sequence[Reward] = (),
    *,
    settings: GenerationSettings,
    base: Policy | None = None,
    judge: Policy | None = None,
    seed: int = 42,
) -> Evaluation:
    """
    Measure a policy on prompts.

    - `reward/<name>`: [`~trl_ext.evaluation.metrics.mean_and_se`] of each reward of the completions.
    - `kl`: mean of [`~trl_ext.evaluation.metrics.response_kl`] to `base`, in nats per response of at most
      `max_completion_length` tokens. The responses are the policy's own at temperature 1 without any truncation: a
      second draw, unless `settings` ask for just that. Exactly 0 where `base` is `policy`. A policy that has a
      `kl_bound` instead of log-probabilities gets that as a metric of this name.
    - `perplexity`: [`~trl_ext.evaluation.metrics.perplexity_and_se`] of the completions under `judge`, given their
      prompts. A judge with another vocabulary reads the completions' text; its perplexity is per token of its own.
    - `distinct_2`: [`~trl_ext.evaluation.metrics.distinct_n_and_se`] of the completions' tokens; of the first
      `num_generations` where a policy returns more of them for the sake of the other metrics, as it falls with the
      number of completions.
    - `completion_length`: tokens of a completion, its end token included.
    - `ended`: share of completions that ended by an end token within `max_completion_length`.

    The same seed gives the same numbers on the same machine with the same batch size. torch's global generator is left
    as it was found.

    Args:
        policy ([`~trl_ext.inference.policy.Policy`]): What is measured.
        rows (`Sequence[dict[str, Any]]`): Rows with a `prompt`, and whatever columns the rewards take.
        rewards (`Sequence[Reward]`, *optional*): From [`~trl_ext.rewards.functions.load_rewards`].
        settings ([`~trl_ext.generation.generate.GenerationSettings`]): How completions are drawn.
        base ([`~trl_ext.inference.policy.Policy`], *optional*): What the KL is measured to.
        judge ([`~trl_ext.inference.policy.Policy`], *optional*): What the perplexity is measured under; by default
            `base`.
        seed (`int`, *optional*, defaults to `42`): Seed of the draws.

    Raises:
        [`~trl_ext.data.schema.DataError`]: There is no row, or one has no prompt, or one too long for the policy's
        model. [`~trl_ext.rewards.functions.RewardError`]: A reward function failed.
    """
    if not rows:
        raise DataError("There is no prompt to evaluate on: the data set is empty.")
    prompt_ids = [policy.encode(_prompt(row, index)) for index, row in enumerate(rows)]
    policy.check_context_length(prompt_ids, settings)
    result = Evaluation()
    started = time.perf_counter()
    with fork_rng(seed):
        result.completions = policy.generate(prompt_ids, settings)
    result.seconds = time.perf_counter() - started
    ids = _ids(result.completions)

    _measure_rewards(result, rows, rewards)
    _measure_kl(result, policy, base, prompt_ids, settings, seed)
    _measure_perplexity(result, policy, judge or base, rows, prompt_ids)
    result.record("distinct_2", distinct_n_and_se([row[: settings.num_generations] for row in ids]))
    result.record("completion_length", mean_and_se([[float(len(x)) for x in row] for row in ids]))
    result.record("ended", mean_and_se([[float(x.ended) for x in row] for row in result.completions]))
    if len(rows) == 1:
        result.notes["se"] = "no standard errors: they need two prompts at least"
    return result


def _prompt(row: dict[str, Any], index: int) -> Any:
    prompt = row.get("prompt")
    if prompt is None:
        raise DataError(f"Row {index} has no prompt. Its columns are: {', '.join(sorted(row))}.")
    return prompt


def _measure_rewards(result: Evaluation, rows: Sequence[dict[str, Any]], rewards: Sequence[Reward]) -> None:
    if not rewards:
        return
    scored = score_completions(rows, result.completions, rewards)
    for reward in rewards:
        key = f"reward/{reward.name}"
        values = [[completion.rewards[reward.name] for completion in group] for group in scored]
        result.rewards[reward.name] = values
        result.record(key, mean_and_se(values))
        missing = sum(math.isnan(value) for group in values for value in group)
        if missing:
            result.notes[key] = f"no number for {missing} of {sum(map(len, values))} completions"


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
    if base is None:
        return result.skip_metric("kl", "no base model was named")
    if policy.logps is None and policy.kl_bound is not None:
        result.metrics["kl_bound"] = policy.kl_bound
        return result.skip_metric("kl", f"not measured; at most {policy.kl_bound:.2f} nats")
    if policy.logps is None or base.logps is None:
        return result.skip_metric("kl", "it has no log-probabilities" if policy.logps is None else "the base has none")
    unreadable = f"{base.name} has another vocabulary"
    if not can_read(base.tokenizer, policy.tokenizer, prompt_ids):
        return result.skip_metric("kl", unreadable)
    drawn = result.completions
    if settings != untruncated(settings):
        with fork_rng(seed):
            drawn = policy.generate(prompt_ids, untruncated(settings))
    ids = _ids(drawn)
    if not can_read(base.tokenizer, policy.tokenizer, chain.from_iterable(ids)):
        return result.skip_metric("kl", unreadable)
    pairs = zip(policy.logps(prompt_ids, ids), base.logps(prompt_ids, ids), strict=True)
    return result.record("kl", mean_and_se([response_kl(logps, base_logps) for logps, base_logps in pairs]))


def _measure_perplexity(
    result: Evaluation,
    policy: Policy,
    judge: Policy | None,
    rows: Sequence[dict[str, Any]],
    prompt_ids: list[list[int]],
) -> None:
    if judge is None or judge.logps is None:
        return result.skip_metric("perplexity", "no model to measure it under was named")
    ids = _ids(result.completions)
    if not can_read(judge.tokenizer, policy.tokenizer, chain(prompt_ids, *ids)):
        prompt_ids = [judge.encode(row["prompt"]) for row in rows]
        ids = [[_reread(judge.tokenizer, completion) for completion in drawn] for drawn in result.completions]
    return result.record("perplexity", perplexity_and_se(judge.logps(prompt_ids, ids)))


def _reread(tokenizer: PreTrainedTokenizerBase, completion: Completion) -> list[int]:
    """A completion in the tokens of another tokenizer; possibly none."""
    ids = tokenizer(completion.text, add_special_tokens=False)["input_ids"]
    return [*ids, tokenizer.eos_token_id] if completion.ended and tokenizer.eos_token_id is not None else ids


def _ids(drawn: list[list[Completion]]) -> list[list[list[int]]]:
    return [[completion.ids for completion in row] for row in drawn]
