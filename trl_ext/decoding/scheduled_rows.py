# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
Applies a schedule of guidance to the rows of a batch while they are generated token by token.

Dimensions: N rows, P tokens of a prompt, S columns of the sequences so far, V vocabulary.
"""

from collections.abc import Callable, Sequence

import torch
from transformers import PreTrainedTokenizerBase

from .guide_schedule import UNITS, GuideSchedule, entropy, extend_digest, text_digest, uniform
from .text_units import START, TextUnits, text_units


class GuidedTokens:
    """
    Counts the tokens of completions, and those of them that were guided.

    Attributes:
        guided (`int`), total (`int`): Tokens so far.
    """

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Start again at 0."""
        self.guided = self.total = 0

    def add(self, guided: int, total: int) -> None:
        """Add the tokens of a batch."""
        self.guided, self.total = self.guided + guided, self.total + total

    @property
    def share(self) -> float:
        """Share of the tokens that were guided; NaN without tokens."""
        return self.guided / self.total if self.total else float("nan")


class ScheduledRows:
    """
    A batch of completions that a schedule decides about, row by row, and the texts so far that it depends on.

    [`guided`] decides about the next token of each row, and [`append`] takes the token that was chosen. The state is
    in tensors that keep their addresses as long as the number of rows is the same, so that a CUDA graph can change
    them.

    Args:
        schedule ([`~trl_ext.decoding.guide_schedule.GuideSchedule`]): The schedule.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`], *optional*): The language model's tokenizer, for words
            and sentences.
        ends (`Sequence[int]`, *optional*): Tokens that end a completion. Rows that have ended are not guided, and
            what follows is not counted.

    Attributes:
        position (`int`): Number of tokens of the completions so far.
        counts_2 (`torch.Tensor` of shape `(2,)`): Number of guided tokens and of all tokens, by [`count`].

    Raises:
        `ValueError`: The schedule is about words or sentences, and there is no tokenizer.
    """

    def __init__(
        self,
        schedule: GuideSchedule,
        *,
        tokenizer: PreTrainedTokenizerBase | None = None,
        ends: Sequence[int] = (),
    ) -> None:
        if schedule.every in UNITS and tokenizer is None:
            raise ValueError(
                f"Guidance at every {schedule.every} needs the language model's tokenizer: pass it (`tokenizer=`)."
            )
        self.schedule, self.tokenizer, self.ends = schedule, tokenizer, sorted(set(ends))
        self.position = 0
        self.counts_2 = torch.zeros(2, dtype=torch.long)
        self.digest_N = torch.zeros(0, dtype=torch.long)
        self.text_N = torch.zeros(0, dtype=torch.long)
        self.ended_N = torch.zeros(0, dtype=torch.bool)
        self._ends = torch.zeros(0, dtype=torch.long)
        self._known_NS: torch.Tensor | None = None
        self._units: TextUnits | None = None

    @property
    def state(self) -> list[torch.Tensor]:
        """The tensors that [`append`] and [`count`] change."""
        return [self.digest_N, self.text_N, self.ended_N, self.counts_2]

    def start(self, ids_NP: torch.Tensor, mask_NP: torch.Tensor | None = None) -> None:
        """
        Begin with prompts. The counts go on.

        Args:
            ids_NP (`torch.Tensor` of shape `(N, P)`): Their token ids.
            mask_NP (`torch.Tensor` of shape `(N, P)`, *optional*): 1 for tokens, 0 for padding.
        """
        n, device = len(ids_NP), ids_NP.device
        if self.digest_N.shape[0] != n or self.digest_N.device != device:
            self.digest_N, self.text_N = (torch.zeros(n, dtype=torch.long, device=device) for _ in range(2))
            self.ended_N = torch.zeros(n, dtype=torch.bool, device=device)
            self.counts_2 = self.counts_2.to(device)
            self._ends = torch.tensor(self.ends, dtype=torch.long, device=device)
        self.position = 0
        self.text_N.fill_(START)
        self.ended_N.zero_()
        if self.schedule.random:
            self.digest_N.copy_(text_digest(ids_NP, torch.ones_like(ids_NP) if mask_NP is None else mask_NP))

    def append(self, tokens_N: torch.Tensor) -> None:
        """Take the next token of each row."""
        self.position += 1
        if self.schedule.random:
            self.digest_N.copy_(extend_digest(self.digest_N, tokens_N))
        if self._units is not None:
            self.text_N.copy_(self._units.next_VZ[tokens_N, self.text_N])
        if self.ends:
            self.ended_N.logical_or_(torch.isin(tokens_N, self._ends))

    def select(self, rows: torch.Tensor) -> None:
        """Replace the rows by these of them: beams, or the rest of a batch."""
        self.digest_N, self.text_N, self.ended_N = self.digest_N[rows], self.text_N[rows], self.ended_N[rows]

    def forget(self) -> None:
        """Take the next sequences of [`follow`] for prompts."""
        self._known_NS = None

    def follow(self, ids_NS: torch.Tensor, mask_of: Callable[[torch.Tensor], torch.Tensor | None]) -> bool:
        """
        Start or append, whichever leads to these sequences: what a logits processor is called with.

        Sequences that are one token longer than those of the previous call, and continue them in any order, go on.
        All others are prompts, whose next token is the first of a completion.

        Args:
            ids_NS (`torch.Tensor` of shape `(N, S)`): The sequences so far.
            mask_of (`Callable`): From `ids_NS` to its attention mask; called for prompts where it is needed.

        Returns:
            `bool`: Whether they go on.
        """
        order = self._order(ids_NS)
        if order is None:
            self.start(ids_NS, mask_of(ids_NS) if self.schedule.random else None)
        else:
            if len(order):
                self.select(order)
            self.append(ids_NS[:, -1])
        self._known_NS = ids_NS.clone()
        return order is not None

    def _order(self, ids_NS: torch.Tensor) -> torch.Tensor | None:
        """Which of the previous sequences each row continues, empty for their own order; `None` for new prompts."""
        known_NS, (n, columns) = self._known_NS, ids_NS.shape
        if known_NS is None or known_NS.device != ids_NS.device or known_NS.shape != (n, columns - 1):
            return None
        head_NS = ids_NS[:, :-1]
        if torch.equal(head_NS, known_NS):
            return torch.zeros(0, dtype=torch.long, device=ids_NS.device)
        same_NN = (head_NS[:, None] == known_NS).all(-1)
        return same_NN.int().argmax(1) if bool(same_NN.any(1).all()) else None

    def guided(self, logits_NV: torch.Tensor) -> torch.Tensor:
        """
        Whether the next token of each row is guided, as far as that is known before the values of candidates are.

        [`~trl_ext.decoding.guide_schedule.GuideSchedule.skips`] is not asked here: it needs no logits.

        Args:
            logits_NV (`torch.Tensor` of shape `(N, V)`): The language model's logits.

        Returns:
            `torch.Tensor` of shape `(N,)`: True where it is guided.
        """
        schedule = self.schedule
        guided_N = ~self.ended_N
        if schedule.entropy:
            guided_N = guided_N & (entropy(logits_NV) > schedule.entropy)
        if schedule.random:
            guided_N = guided_N & (uniform(self.digest_N, schedule.seed) < schedule.random)
        if isinstance(schedule.every, str):
            begins_VZ = self.units(logits_NV.shape[1], logits_NV.device).begins[schedule.every]
            guided_N = guided_N & begins_VZ[logits_NV.argmax(-1), self.text_N]
        return guided_N

    def units(self, vocabulary: int, device: torch.device) -> TextUnits:
        """The tables of words and sentences, on a device."""
        known = self._units
        if known is None or known.next_VZ.shape[0] != vocabulary or known.next_VZ.device != device:
            assert self.tokenizer is not None
            self._units = known = text_units(self.tokenizer, vocabulary).to(device)
        return known

    def add_counts(self, other: "ScheduledRows") -> None:
        """Add the counts of another object."""
        self.counts_2 = self.counts_2 + other.counts_2.to(self.counts_2.device)

    def count(self, guided_N: torch.Tensor | None) -> None:
        """
        Count the next tokens of rows that have not ended.

        Args:
            guided_N (`torch.Tensor` of shape `(N,)`, *optional*): Whether each is guided; by default none is.
        """
        going_N = ~self.ended_N
        self.counts_2[1].add_(going_N.sum())
        if guided_N is not None:
            self.counts_2[0].add_((guided_N & going_N).sum())
