# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Answers of policies to prompts, one by one as they are written or in batches: what `trl-ext generate` repeats."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from trl_ext.data.completion import Completion
from trl_ext.data.schema import as_completion
from trl_ext.data.tokenization import encode_prompt
from trl_ext.generation_settings import GenerationSettings
from trl_ext.seeds import seeded

from .policy import Policy


@dataclass(frozen=True)
class Completer:
    """
    What answers prompts.

    Args:
        policies (`list[Policy]`): Each of them answers each prompt.
        settings ([`~trl_ext.generation.generate.GenerationSettings`]): How answers are drawn.
        seed (`int`, *optional*, defaults to `42`): Seed of the draws.
    """

    policies: list[Policy]
    settings: GenerationSettings
    seed: int = 42

    def batch(self, rows: Sequence[dict[str, Any]], start: int) -> list[dict[str, Any]]:
        """
        Answer several prompts at once. What is drawn depends on the rows, the seed and `start` alone.

        Args:
            rows (`Sequence[dict]`): Rows with a `prompt`.
            start (`int`): Number of the first one.

        Returns:
            `list[dict]`: The rows with `completions`, `ended` and, where several policies answer, `sources`.

        Raises:
            `ValueError`: A prompt is empty or too long. The message has its number.
        """
        drawn: list[list[Completion]] = [[] for _ in rows]
        for place, policy in enumerate(self.policies):
            ids = [self._encode(policy, row["prompt"], start + i) for i, row in enumerate(rows)]
            with seeded(self.seed, start, place):
                for group, completions in zip(drawn, policy.generate(ids, self.settings), strict=True):
                    group += completions
        return [self._row(row, group) for row, group in zip(rows, drawn, strict=True)]

    def one(
        self, row: dict[str, Any], number: int, show: Callable[[str], Any], title: Callable[[str], Any]
    ) -> dict[str, Any]:
        """
        Answer one prompt and show the answers as they are written.

        Args:
            row (`dict`): With a `prompt`.
            number (`int`): Its number, which with the seed decides what is drawn.
            show (`Callable`): Called with pieces of an answer's text.
            title (`Callable`): Called before each answer with the name of who answers.

        Returns:
            `dict`: See [`batch`].
        """
        drawn: list[Completion] = []
        for place, policy in enumerate(self.policies):
            ids = self._encode(policy, row["prompt"], number)
            with seeded(self.seed, number, place):
                if policy.stream is not None and self.settings.num_generations == 1:
                    title(policy.name)
                    drawn.append(policy.stream(ids, self.settings, show))
                else:
                    [completions] = policy.generate([ids], self.settings)
                    for completion in completions:
                        title(policy.name)
                        show(completion.text)
                    drawn += completions
        return self._row(row, drawn)

    def _encode(self, policy: Policy, prompt: Any, number: int) -> list[int]:
        ids = encode_prompt(policy.tokenizer, prompt)
        if not ids:
            raise ValueError(f"prompt {number} has no tokens: there is nothing to answer.")
        policy.check_context_length([ids], self.settings, first=number)
        return ids

    def _row(self, row: dict[str, Any], drawn: Sequence[Completion]) -> dict[str, Any]:
        made: dict[str, Any] = {
            "prompt": row["prompt"],
            "completions": [as_completion(row, c.text) for c in drawn],
            "ended": [completion.ended for completion in drawn],
        }
        if len(self.policies) > 1:
            each = len(drawn) // len(self.policies)
            made["sources"] = [policy.name for policy in self.policies for _ in range(each)]
        return made | {name: value for name, value in row.items() if name not in made}
