# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Completes prompts with several policies, streamed or in batches, as `trl-ext generate` does."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from trl_ext.data.chat_template import with_template_kwargs
from trl_ext.data.completion import Completion
from trl_ext.generation_settings import GenerationSettings
from trl_ext.seeds import seeded

from .dataset_sampler import OUTPUT_COLUMNS
from .policy import Policy


@dataclass(frozen=True)
class Completer:
    """
    Generates completions for prompts with one or several policies.

    Args:
        policies (`list[Policy]`):
            Each of them completes each prompt.
        settings ([`~trl_ext.generation_settings.GenerationSettings`]):
            How to generate.
        seed (`int`, *optional*, defaults to `42`):
            Seed of the sampling.
        chat_template_kwargs (`dict[str, Any]`, *optional*):
            Arguments of the chat template. A column of this name wins.
    """

    policies: list[Policy]
    settings: GenerationSettings
    seed: int = 42
    chat_template_kwargs: dict[str, Any] | None = None

    def batch(self, rows: Sequence[dict[str, Any]], start: int) -> list[dict[str, Any]]:
        """
        Complete several prompts at once. The completions depend only on the rows, the seed and `start`.

        Args:
            rows (`Sequence[dict]`): Rows with a `prompt`.
            start (`int`): Number of the first one.

        Returns:
            `list[dict]`: The rows with `completions`, `ended` and, if there are several policies, `sources`. Columns
                that belong to completions of the dataset, such as their scores, are left out.

        Raises:
            `ValueError`: A prompt is empty or too long. The message has its number.
        """
        groups: list[list[Completion]] = [[] for _ in rows]
        for place, policy in enumerate(self.policies):
            ids = [self._encode(policy, row, start + i) for i, row in enumerate(rows)]
            with seeded(self.seed, start, place):
                generated = policy.generate(ids, self.settings)
            for group, completions in zip(groups, generated, strict=True):
                group += [replace(completion, source=policy.name) for completion in completions]
        return [self._output_row(row, group) for row, group in zip(rows, groups, strict=True)]

    def one(
        self, row: dict[str, Any], number: int, show: Callable[[str], Any], title: Callable[[str], Any]
    ) -> dict[str, Any]:
        """
        Complete one prompt, and show the completions while they are generated.

        Args:
            row (`dict`): A row with a `prompt`.
            number (`int`): Its number, which together with the seed decides the completions.
            show (`Callable`): Called with pieces of a completion's text.
            title (`Callable`): Called before each completion with the name of its policy.

        Returns:
            `dict`: See [`batch`].
        """
        group: list[Completion] = []
        for place, policy in enumerate(self.policies):
            ids = self._encode(policy, row, number)
            with seeded(self.seed, number, place):
                if policy.stream is not None and self.settings.num_generations == 1:
                    title(policy.name)
                    completions = [policy.stream(ids, self.settings, show)]
                else:
                    [completions] = policy.generate([ids], self.settings)
                    for completion in completions:
                        title(policy.name)
                        show(completion.text)
            group += [replace(completion, source=policy.name) for completion in completions]
        return self._output_row(row, group)

    def _encode(self, policy: Policy, row: dict[str, Any], number: int) -> list[int]:
        [ids] = policy.encode_rows([with_template_kwargs(row, self.chat_template_kwargs)], number)
        if not ids:
            raise ValueError(f"prompt {number} has no tokens: there is nothing to continue.")
        policy.check_context_length([ids], self.settings, first=number)
        return ids

    def _output_row(self, row: dict[str, Any], group: Sequence[Completion]) -> dict[str, Any]:
        made: dict[str, Any] = {
            "prompt": row["prompt"],
            "completions": [completion.content(row) for completion in group],
            "ended": [completion.ended for completion in group],
        }
        if len(self.policies) > 1:
            made["sources"] = [completion.source for completion in group]
        return made | {name: value for name, value in row.items() if name not in OUTPUT_COLUMNS}
