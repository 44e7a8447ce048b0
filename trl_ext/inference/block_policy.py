# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
A language model whose completions are put together from blocks that guides choose, as a policy.

In each round, the model generates `guide_blocks` continuations of `guide_block_length` tokens of each text that is
kept. One text is kept: sampled with probabilities softmax(weight times score), as value-guided block search does, or
the best one, as blockwise controlled decoding does. Or the `guide_beams` best ones are kept, as in a beam search over
values; with `guide_drop`, fewer in each round, as in best-of-n whose worst beginnings are dropped.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from trl_ext.data.completion import Completion, decode_after
from trl_ext.generation.generate import generate
from trl_ext.generation_settings import GenerationSettings
from trl_ext.guides.blocks import BlockScorer, choose_block
from trl_ext.guides.guide_file import GuideSettings

from .best_of_n import kl_bound
from .policy import Policy


@dataclass(frozen=True)
class _Text:
    """
    A text so far.

    Args:
        ids (`list[int]`): Its token ids after the prompt.
        ended (`bool`): Whether the model ended it.
        score (`float`): Its weighted score.
        of_tokens (`float`): The part of the score that is a sum over its tokens.
        kl (`float`): Upper bound, in expectation, of the KL to the language model; see [`kl_of_round`].
    """

    ids: list[int]
    ended: bool = False
    score: float = 0.0
    of_tokens: float = 0.0
    kl: float = 0.0


def block_policy(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    scorer: BlockScorer,
    guide_settings: GuideSettings,
    *,
    batch_size: int,
    **fields: Any,
) -> Policy:
    """
    The [`~trl_ext.inference.policy.Policy`] of a language model whose blocks guides choose. It has no `logps`, as the
    probability of a completion is that of all ways to choose it; its completions have a bound of the KL.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]): The language model.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): Its tokenizer.
        scorer ([`~trl_ext.guides.blocks.BlockScorer`]): Scores blocks.
        guide_settings ([`~trl_ext.guides.guide_file.GuideSettings`]): Number, length and choice of blocks.
        batch_size (`int`): Blocks to generate at once.
        fields: Further fields of the policy.
    """

    def sample(prompt_ids: list[list[int]], settings: GenerationSettings) -> list[list[Completion]]:
        if settings.temperature == 0 or settings.num_beams > 1:
            raise ValueError(
                "Temperature 0 and beam searches give the same block every time: raise `temperature` and set "
                "`num_beams` to 1, or remove `guide_blocks` from the guide file."
            )
        if settings.generation_config(model, tokenizer).stop_strings:
            raise ValueError(
                "`stop_strings` may be split between two blocks, where they would not be noticed: remove them, or "
                "`guide_blocks` from the guide file."
            )
        k = settings.num_generations
        prompts = [list(ids) for ids in prompt_ids for _ in range(k)]
        rows: list[Completion] = []
        at_once = max(1, batch_size // (guide_settings.guide_blocks * guide_settings.guide_beams))
        for start in range(0, len(prompts), at_once):
            rows += _complete(
                model, tokenizer, prompts[start : start + at_once], settings, scorer, guide_settings, batch_size
            )
        return [rows[start : start + k] for start in range(0, len(rows), k)]

    return Policy(tokenizer=tokenizer, generate=sample, model=model, own_kl="bound", **fields)


def kl_of_round(guide_settings: GuideSettings) -> float:
    """
    What choosing the best of a round's continuations adds to the KL at most, in nats per text.

    One of k continuations of the only text is best-of-n with n = k: log k - (k - 1) / k. With m texts, a completion
    after R rounds can have come about in m k^R ways, each as probable as under the language model, so that its
    probability is at most m k^R times that one: log m once, and log k in each round.

    A sampled choice is not counted here: [`~trl_ext.guides.blocks.choose_block`] says what it adds.
    """
    if guide_settings.guide_block_choice == "sample":
        return 0.0
    k = guide_settings.guide_blocks
    return kl_bound(k) if guide_settings.guide_beams == 1 else math.log(k)


def _complete(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[list[int]],
    settings: GenerationSettings,
    scorer: BlockScorer,
    guide_settings: GuideSettings,
    batch_size: int,
) -> list[Completion]:
    """One completion of each prompt."""
    first, added_kl = _Text([], kl=math.log(guide_settings.guide_beams)), kl_of_round(guide_settings)
    kept = [[first] * guide_settings.guide_beams for _ in prompts]
    length, rounds = 0, 0  # texts that have not ended are of one length
    while live := [(i, text) for i, texts in enumerate(kept) for text in texts if not text.ended]:
        if (left := settings.max_completion_length - length) < 1:
            break
        of_round = replace(
            settings,
            num_generations=guide_settings.guide_blocks,
            max_completion_length=min(guide_settings.guide_block_length, left),
        )
        before = [prompts[i] + text.ids for i, text in live]
        blocks = generate(model, tokenizer, before, of_round, batch_size=batch_size)
        scores = scorer(before, [[block.ids for block in group] for group in blocks])
        candidates = [[text for text in texts if text.ended] for texts in kept]
        for (i, text), group, of_texts, of_blocks in zip(
            live, blocks, *(each.tolist() for each in scores), strict=True
        ):
            for block, of_text, of_block in zip(group, of_texts, of_blocks, strict=True):
                of_tokens = text.of_tokens + of_block
                score, kl = of_text + of_tokens, text.kl + added_kl
                candidates[i].append(_Text(text.ids + block.ids, block.ended, score, of_tokens, kl))
        length, rounds = length + of_round.max_completion_length, rounds + 1
        kept = [_keep(texts, rounds, guide_settings) for texts in candidates]
    best = [max(texts, key=lambda text: text.score) for texts in kept]
    decoded = decode_after(tokenizer, prompts, [text.ids for text in best])
    return [
        Completion(text=shown, ids=text.ids, ended=text.ended, kl=text.kl)
        for shown, text in zip(decoded, best, strict=True)
    ]


def _keep(texts: Sequence[_Text], rounds: int, guide_settings: GuideSettings) -> list[_Text]:
    """The texts that are kept after so many rounds."""
    if guide_settings.guide_block_choice == "sample":
        scores_k = torch.tensor([text.score for text in texts], dtype=torch.float64)
        chosen, gain = choose_block(scores_k, float(torch.rand(())))
        return [replace(texts[chosen], kl=texts[chosen].kl + gain)]
    count = math.ceil(guide_settings.guide_beams * (1 - guide_settings.guide_drop) ** rounds)
    return sorted(texts, key=lambda text: -text.score)[: max(1, count)]
