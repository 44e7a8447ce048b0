# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""The models of a server by name, the guides that can be weighted per request, and the rewards of best-of-n."""

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from trl_ext.data.completion import Completion
from trl_ext.guides.weights import head_weights
from trl_ext.inference.policy import Policy
from trl_ext.models.properties import embedding_rows
from trl_ext.rewards.functions import Reward
from trl_ext.rewards.scoring import check_reward_weights, score_completions

from .jobs import Job, Row
from .limits import RequestError


Beta = tuple[tuple[str, float], ...]
_KEPT = 64  # policies with other weights


class ServedModels:
    """
    The models that a server offers.

    Args:
        plain ([`~trl_ext.inference.policy.Policy`]):
            The model without guidance. Every model with `beta` 0 is this one.
        guided (`Iterable[Policy]`, *optional*):
            The same model with guides or a proxy.
        rewards (`Sequence[Reward]`, *optional*):
            Rewards that rank the completions of `best_of_n`.
        reward_weights (`Sequence[float]`, *optional*):
            One per reward, 1 by default.

    Attributes:
        by_name (`dict[str, Policy]`): The models.
        reward_weights (`dict[str, float]`): The weights of the rewards, by name.

    Raises:
        `ValueError`: Two models have the same name, such as one value model with two weights; a value model reads
            other columns of a dataset than the prompt; or there is not one weight per reward.
    """

    def __init__(
        self,
        plain: Policy,
        guided: Iterable[Policy] = (),
        *,
        rewards: Sequence[Reward] = (),
        reward_weights: Sequence[float] | None = None,
    ) -> None:
        self.plain, self.rewards = plain, list(rewards)
        names = [reward.name for reward in self.rewards]
        self.reward_weights = dict(zip(names, check_reward_weights(reward_weights, names), strict=True))
        self.by_name = {plain.name: plain}
        for policy in guided:
            name = served_name(policy)
            if name in self.by_name:
                raise ValueError(
                    f"two models would be called {name!r}: start with one setting of each, as requests choose "
                    "weights themselves (`beta`)."
                )
            if policy.sees_row is not None:
                raise ValueError(
                    f"{name!r} reads a column of a dataset beside the prompt (`value_prompt`), which requests do not "
                    "have: use a value model that was trained without it."
                )
            self.by_name[name] = policy
        self.vocabulary = embedding_rows(plain.model) if plain.model is not None else len(plain.tokenizer)
        self._weighted: OrderedDict[tuple[str, Beta], Policy] = OrderedDict()

    def named(self, name: str | None) -> str:
        """
        The name of the model that a request asks for; of the only one if it gives none.

        Raises:
            [`~trl_ext.serving.limits.RequestError`]: There is no such model, or the request must name one of several.
        """
        known = ", ".join(self.by_name)
        if name is None:
            if len(self.by_name) > 1:
                raise RequestError(400, f"`model` is missing. There are: {known}.", "model")
            return next(iter(self.by_name))
        if name not in self.by_name:
            shown = name if len(name) <= 100 else f"{name[:100]}..."
            raise RequestError(404, f"There is no model {shown!r}. There are: {known}.", "model", "model_not_found")
        return name

    def beta(self, name: str, given: float | dict[str, float] | None) -> Beta | None:
        """
        The weights of the guides of a model, as a request gives them.

        Returns:
            `tuple` or `None`: Weights by name; empty for the plain model; `None` for the model's own.

        Raises:
            [`~trl_ext.serving.limits.RequestError`]: The model has no such weights.
        """
        if given is None:
            return None
        weights = self.by_name[name].weights
        nothing = not any(given.values() if isinstance(given, dict) else [given])
        if nothing and not (isinstance(given, dict) and given):
            return ()
        if weights is None:
            raise RequestError(400, f"`beta` has no effect on {name!r}, which has no guides with weights.", "beta")
        try:
            found = head_weights(given, list(weights.values), "beta")
        except (ValueError, TypeError) as error:
            raise RequestError(400, str(error), "beta") from error
        return () if nothing else tuple(zip(weights.values, found.rows[0], strict=True))

    def policy(self, name: str, beta: Beta | None, *, shows_guidance: bool = False) -> Policy:
        """
        The policy of a model with these weights. For one thread at a time.

        With `shows_guidance`, guides are there at weight 0 too, to say what they think of the tokens.
        """
        if beta is None:
            return self.by_name[name]
        if not any(weight for _, weight in beta):
            weights = self.by_name[name].weights
            if not shows_guidance or weights is None:
                return self.plain
            beta = tuple((head, 0.0) for head in weights.values)
        if (name, beta) not in self._weighted:
            weights = self.by_name[name].weights
            assert weights is not None
            try:
                self._weighted[name, beta] = weights.change(dict(beta))
            except ValueError as error:
                raise RequestError(400, str(error), "beta") from error
            if len(self._weighted) > _KEPT:
                self._weighted.popitem(last=False)
        self._weighted.move_to_end((name, beta))
        return self._weighted[name, beta]

    def check_guidance(self, name: str) -> None:
        """Raise a [`~trl_ext.serving.limits.RequestError`] if nothing says what it does at the tokens of a model."""
        if not self.by_name[name].shows_guidance:
            raise no_guidance(name)

    def check_rewards(self) -> None:
        """Raise a [`~trl_ext.serving.limits.RequestError`] if nothing ranks the completions of `best_of_n`."""
        if not self.rewards:
            raise RequestError(
                400,
                "`best_of_n` needs a reward that ranks completions: start the server with --reward_funcs.",
                "best_of_n",
            )

    def weights_of_rewards(self, given: Mapping[str, float] | None) -> list[float]:
        """
        A weight for each reward, as a request gives them by name: 0 for omitted ones; by default the server's.

        Raises:
            [`~trl_ext.serving.limits.RequestError`]: There is no such reward, or no weight but 0.
        """
        if given is None:
            return list(self.reward_weights.values())
        for name in given:
            if name not in self.reward_weights:
                raise RequestError(
                    400, f"`reward_weights` has {name[:100]!r}, which is no reward here. There are: "
                    f"{', '.join(self.reward_weights)}.", "reward_weights",
                )  # fmt: skip
        if not any(given.values()):
            raise RequestError(400, "`reward_weights` has no weight but 0: nothing is ranked.", "reward_weights")
        return [given.get(name, 0.0) for name in self.reward_weights]

    def keep_best(self, job: Job) -> None:
        """Score the completions of a job, and keep the best of each group of `best_of_n`."""
        n = job.best_of_n
        groups = [job.rows[start : start + n] for start in range(0, len(job.rows), n)]
        completions = [[Completion(row.text, row.ids, row.finish_reason == "stop") for row in each] for each in groups]
        scored = score_completions(job.reward_rows, completions, self.rewards, job.reward_weights)
        best: list[Row] = []
        for group, scores in zip(groups, scored, strict=True):
            ranks = [each.score if each.score == each.score else float("-inf") for each in scores]
            best.append(group[ranks.index(max(ranks))])
        job.unused_tokens = sum(len(row.tokens) for row in job.rows) - sum(len(row.tokens) for row in best)
        for index, row in enumerate(best):
            row.index = index
        job.rows = best


def no_guidance(name: str) -> RequestError:
    """The error of a request for `guidance` where nothing scores tokens."""
    message = f"`guidance` is not available for {name!r}: nothing that scores its tokens one by one guides it."
    return RequestError(400, message, "guidance")


def served_name(policy: Policy) -> str:
    """Name of a guided model in requests: that of its series, without its weights and without spaces."""
    return (policy.series or policy.name).replace(" + ", "+").replace(", ", ",").replace(" ", "_")


def prompt_row(prompt: Any, tokenizer: Any) -> dict[str, Any]:
    """The row that rewards get for a prompt: its text or messages."""
    is_ids = isinstance(prompt, list) and isinstance(prompt[0], int)
    return {"prompt": tokenizer.decode(prompt, skip_special_tokens=True) if is_ids else prompt}
