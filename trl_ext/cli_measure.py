# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""What `trl-ext evaluate` repeats: load a model, measure it and what steers it, go on with the next."""

import gc
import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from .best_of import best_of_n_policies
from .cli_decoding import policies
from .cli_models import Models, Opened
from .cli_progress import PromptProgress
from .evaluation import untruncated
from .evaluation_report import Report
from .generation_settings import GenerationSettings
from .policy import Decoding, Policy, served_at_once
from .rewards import Reward


logger = logging.getLogger(__name__)


class Measurement:
    """
    One policy after the other, into the report; a policy that fails leaves the others their numbers.

    Args:
        models ([`~trl_ext.cli_models.Models`]): The models, the base first.
        report ([`~trl_ext.evaluation_report.Report`]): Takes in what is found.
        rows (`list[dict[str, Any]]`): Rows with a `prompt`.
        rewards (`list[Reward]`): May be empty.
        settings ([`~trl_ext.sampling.GenerationSettings`]): How completions are drawn.
        seed (`int`): Seed of the draws, the same for every policy.
        ns (`Sequence[int]`, *optional*): The n of best-of-n of the base.
        reward_weights (`Sequence[float]`, *optional*): What decides there which is best.
        decodings (`Sequence[Decoding]`, *optional*): What steers the base, or a model of its own; checked.
    """

    def __init__(
        self,
        models: Models,
        report: Report,
        rows: list[dict[str, Any]],
        rewards: list[Reward],
        *,
        settings: GenerationSettings,
        seed: int,
        ns: Sequence[int] = (),
        reward_weights: Sequence[float] | None = None,
        decodings: Sequence[Decoding] = (),
    ) -> None:
        self.models, self.report, self.rows, self.rewards = models, report, rows, rewards
        self.settings, self.seed = settings, seed
        self.ns, self.reward_weights, self.decodings = ns, reward_weights, decodings
        self.progress = PromptProgress()

    def __call__(self) -> int:
        """Measure all; returns 130 after Ctrl-C, else 0."""
        try:
            for name in self.models.names:
                if name in self.models.failures:
                    self.report.fail(name, self.models.failures[name])
                elif not self._model(name) and name == self.models.base:
                    break  # the others are measured against it
                gc.collect()
                if torch.cuda.is_available():
                    torch.cuda.empty_cache()
            self._decodings(None)
        except KeyboardInterrupt:
            print("\ntrl-ext evaluate: interrupted; the models below were finished", file=sys.stderr)
            return 130
        return 0

    def _model(self, name: str) -> bool:
        measured = False
        with self._failing(name):
            opened = self.models.open(name, self.progress)
            self._policy(opened.policy, opened.base)
            measured = True
            if name == self.models.base:
                self._steered(opened)
        return measured

    def _policy(self, policy: Policy, base: Policy | None) -> None:
        with_kl = policy is not base and policy.logps is not None and self.settings != untruncated(self.settings)
        with self.progress.of(policy.name, (2 if with_kl else 1) * len(self.rows)):  # the KL takes a draw of its own
            found = self.models.measure(
                policy, base, rows=self.rows, rewards=self.rewards, settings=self.settings, seed=self.seed
            )
        self.report.add(policy.name, found, series=policy.series, extras=policy.extras)

    def _steered(self, opened: Opened) -> None:
        """What steers the base: best-of-n, and the decodings that the user asked for."""
        base = opened.policy
        for policy in self._best_of_n(base):
            with self._failing(policy.name):
                self._policy(policy, base)
        self._decodings(opened)

    def _decodings(self, opened: Opened | None) -> None:
        """Those that steer a model that was opened, or those that bring their own."""
        base = None if opened is None else opened.policy
        for decoding in self.decodings:
            if bool(at_once := served_at_once([decoding])) is not (opened is None):
                continue
            told = f"{base.name} " if base is not None else ""
            with self._failing(f"{told}{type(decoding).__name__}"):
                for policy in policies(
                    [decoding],
                    None if opened is None else opened.model,
                    None if base is None else base.tokenizer,
                    name=told.rstrip(),
                    batch_size=at_once or self.models.batch_size,
                    progress=self.progress,
                ):
                    with self._failing(policy.name):
                        self._policy(policy, base)

    def _best_of_n(self, base: Policy) -> list[Policy]:
        if not self.ns:
            return []
        return best_of_n_policies(base, self.rows, self.rewards, self.ns, reward_weights=self.reward_weights)

    @contextmanager
    def _failing(self, name: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # whatever it is, the other models' numbers are worth having
            logger.debug("measuring %s failed", name, exc_info=True)
            self.report.fail(name, f"{type(error).__name__}: {error}")
            complain(name, f"{type(error).__name__}: {error}")


def complain(model: str, reason: str) -> None:
    """Say on stderr that a model could not be measured."""
    print(f"trl-ext evaluate: error: model {model!r}: {reason}", file=sys.stderr)
