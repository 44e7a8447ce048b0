# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
Guides that choose among short continuations of a text (blocks) instead of tokens.

Dimensions: N texts, k blocks of each, T tokens of the longest block, H heads of all guides.
"""

import bisect
import itertools
import math
from collections.abc import Sequence

import torch

from trl_ext.data.tokenization import left_padded
from trl_ext.decoding.guide import GuideContext

from .base_guide import BaseGuide
from .logits_processor import GuidedLogitsProcessor


def choose_block(logits_k: torch.Tensor, uniform: float) -> tuple[int, float]:
    """
    Choose one of k blocks with probabilities softmax(logits).

    Args:
        logits_k (`torch.Tensor` of shape `(k,)`): Weighted scores of the blocks.
        uniform (`float`): A number between 0 and 1, uniformly distributed: the only randomness.

    Returns:
        `tuple[int, float]`: Its index, and the logarithm of its probability relative to 1 / k. The sum of these over
        the rounds of a text is, in expectation, an upper bound of the KL to the language model in nats.
    """
    weights = logits_k.softmax(0).tolist()
    cumulated = list(itertools.accumulate(weights))
    chosen = min(bisect.bisect(cumulated, uniform * cumulated[-1]), len(weights) - 1)
    return chosen, math.log(len(weights) * weights[chosen])


class BlockScorer:
    """
    Scores blocks: the text with the block, or the sum over its tokens for guides that score tokens.

    Args:
        processor ([`~trl_ext.guides.logits_processor.GuidedLogitsProcessor`]): The guides and their weights.
        vocabulary (`int`): Number of tokens of the language model.
        pad_token_id (`int`): Token in padding.
        device (`torch.device`): Where token ids are put.

    Raises:
        `ValueError`: A guide cannot score blocks.
    """

    def __init__(
        self, processor: GuidedLogitsProcessor, vocabulary: int, pad_token_id: int, device: torch.device
    ) -> None:
        self.processor, self.vocabulary = processor, vocabulary
        self.pad_token_id, self.device = pad_token_id, device
        reasons = [(guide.who, guide.blocks_unsupported_reason()) for guide in processor.guides]
        for who, reason in reasons:
            if reason:
                raise ValueError(f"The {who} cannot choose among blocks (`guide_blocks`): {reason}.")

    @torch.no_grad()
    def __call__(
        self, texts: Sequence[Sequence[int]], blocks: Sequence[Sequence[Sequence[int]]]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Weighted scores of the blocks of some texts.

        Args:
            texts (`Sequence[Sequence[int]]`): Token ids of N texts, at least one each.
            blocks (`Sequence[Sequence[Sequence[int]]]`): The k blocks of each text, of at least one token.

        Returns:
            `tuple[torch.Tensor, torch.Tensor]`, each of shape `(N, k)`, float32 on the CPU: the scores of the texts
            with the blocks, by guides that score texts; and those of the blocks, by guides that score tokens, which
            add up along a text.

        Raises:
            `ValueError`: A score is not finite, or what a guide raises.
        """
        n, k = len(texts), len(blocks[0])
        before = [list(text) for text in texts for _ in range(k)]
        after = [list(block) for group in blocks for block in group]
        weights_MH = self.processor.row_weights(n, torch.device("cpu")).repeat_interleave(k, 0)
        of_texts_M, of_blocks_M = torch.zeros(n * k), torch.zeros(n * k)
        for guide, columns in zip(self.processor.guides, self.processor.columns, strict=True):
            weights = weights_MH[:, columns]
            if not weights.any():
                continue
            score = self._sum_over_tokens if guide.scores_tokens else self._at_the_end
            scores_MH = score(guide, before, after).cpu().float()
            if not scores_MH.isfinite().all():
                raise ValueError(
                    f"The {guide.who} returned a score that is not finite, so that there is no distribution to sample "
                    "from. Load it in a dtype of a larger range (bfloat16 or float32), and check its weights."
                )
            total_M = of_blocks_M if guide.scores_tokens else of_texts_M
            total_M += (scores_MH * weights).sum(1)
        return of_texts_M.unflatten(0, (n, k)), of_blocks_M.unflatten(0, (n, k))

    def _at_the_end(self, guide: BaseGuide, texts: list[list[int]], blocks: list[list[int]]) -> torch.Tensor:
        """Scores (M, H) of M texts with their blocks: the last token is the only candidate after those before it."""
        rows = [text + block for text, block in zip(texts, blocks, strict=True)]
        ids_MS, mask_MS = left_padded([row[:-1] for row in rows], self.pad_token_id, self.device)
        last_M1 = torch.tensor([row[-1:] for row in rows], device=self.device)
        return guide.score(self._context(ids_MS, mask_MS), last_M1).reshape(len(rows), -1)

    def _sum_over_tokens(self, guide: BaseGuide, texts: list[list[int]], blocks: list[list[int]]) -> torch.Tensor:
        """Sums (M, H) over the tokens of the blocks, read one column at a time with the guide's KV cache."""
        ids_MP, mask_MP = left_padded(texts, self.pad_token_id, self.device)
        longest = max(map(len, blocks))
        # A block that has ended goes on with its last token, which is not counted.
        filled = torch.tensor([block + block[-1:] * (longest - len(block)) for block in blocks], device=self.device)
        lengths_M1 = torch.tensor([[len(block)] for block in blocks], device=self.device)
        total_MH = torch.zeros(len(blocks), len(guide.heads), device=self.device)
        for t in range(longest):
            ids_MS = torch.cat([ids_MP, filled[:, :t]], 1)
            context = self._context(ids_MS, torch.nn.functional.pad(mask_MP, (0, t), value=1))
            scores_MH = guide.score(context, filled[:, t : t + 1]).reshape(len(blocks), -1)
            total_MH += torch.where(t < lengths_M1, scores_MH.to(self.device), 0.0)
        return total_MH

    def _context(self, ids_MS: torch.Tensor, mask_MS: torch.Tensor) -> GuideContext:
        known = {"tokenizer": self.processor.tokenizer, "end_token_ids": self.processor.end_token_ids}
        return GuideContext(ids_MS, lambda: mask_MS, self.vocabulary, **known)  # type: ignore[arg-type]
