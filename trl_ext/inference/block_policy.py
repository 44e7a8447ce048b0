# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
A language model whose completions are put together from blocks that guides choose, as a policy.

In each round, the model generates `guide_blocks` continuations of `guide_block_length` tokens, and one of them is
kept: sampled with probabilities softmax(weight times score), as value-guided block search does, or the best one, as
blockwise controlled decoding does.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from trl_ext.data.completion import Completion, decode_after
from trl_ext.generation.generate import generate
from trl_ext.generation_settings import GenerationSettings
from trl_ext.guides.blocks import BlockScorer, choose_block
from trl_ext.guides.guide_file import GuideSettings

from .policy import Policy


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
    The [`~trl_ext.inference.policy.Policy`] of a language model whose blocks guides choose. It has no `logps`: the
    probability of a completion is that of all ways to choose it.

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
        k = settings.num_generations
        prompts = [list(ids) for ids in prompt_ids for _ in range(k)]
        rows: list[Completion] = []
        at_once = max(1, batch_size // guide_settings.guide_blocks)
        for start in range(0, len(prompts), at_once):
            rows += _complete(
                model, tokenizer, prompts[start : start + at_once], settings, scorer, guide_settings, batch_size
            )
        return [rows[start : start + k] for start in range(0, len(rows), k)]

    return Policy(tokenizer=tokenizer, generate=sample, model=model, **fields)


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
    written: list[list[int]] = [[] for _ in prompts]
    ended = [False] * len(prompts)
    while live := [i for i, ids in enumerate(written) if not ended[i] and len(ids) < settings.max_completion_length]:
        # Completions that have not ended are of one length.
        left = settings.max_completion_length - len(written[live[0]])
        of_round = replace(
            settings,
            num_generations=guide_settings.guide_blocks,
            max_completion_length=min(guide_settings.guide_block_length, left),
        )
        texts = [prompts[i] + written[i] for i in live]
        blocks = generate(model, tokenizer, texts, of_round, batch_size=batch_size)
        chosen = _choose(scorer(texts, [[block.ids for block in group] for group in blocks]), guide_settings)
        for i, group, index in zip(live, blocks, chosen, strict=True):
            written[i] += group[index].ids
            ended[i] = group[index].ended
    decoded = decode_after(tokenizer, prompts, written)
    return [Completion(text=text, ids=ids, ended=end) for text, ids, end in zip(decoded, written, ended, strict=True)]


def _choose(logits_Nk: torch.Tensor, guide_settings: GuideSettings) -> Sequence[int]:
    """Index of the block of each text that is kept."""
    if guide_settings.guide_block_choice == "best":
        return logits_Nk.argmax(1).tolist()  # type: ignore[no-any-return]
    uniform_N = torch.rand(len(logits_Nk)).tolist()
    return [choose_block(logits_k, uniform)[0] for logits_k, uniform in zip(logits_Nk, uniform_N, strict=True)]
