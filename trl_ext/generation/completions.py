# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""What a model answered: tokens up to the end of sequence, and their text."""

from transformers import GenerationConfig, PreTrainedTokenizerBase

from trl_ext.data.completion import Completion


def completions(
    rows: list[list[int]], tokenizer: PreTrainedTokenizerBase, config: GenerationConfig
) -> list[Completion]:
    """
    Generated rows without what follows their end, and their texts.

    Args:
        rows (`list[list[int]]`): What `generate` returned, without the prompts.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): The tokenizer.
        config ([`~transformers.GenerationConfig`]): Its ends of sequence, stop strings and padding are looked at.
    """
    eos = set(config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id])
    stops = [config.stop_strings] if isinstance(config.stop_strings, str) else config.stop_strings or []
    ends = [next((i + 1 for i, token in enumerate(row) if token in eos), 0) for row in rows]
    rows = [row[: end or None] for row, end in zip(rows, ends, strict=True)]
    texts = tokenizer.batch_decode(rows, skip_special_tokens=True)
    found = []
    for text, ids, end in zip(texts, rows, ends, strict=True):
        stopped = not end and any(stop in text for stop in stops)
        while stopped and len(ids) > 1 and ids[-1] == config.pad_token_id:  # what follows a stop string
            ids.pop()
        found.append(Completion(text=text, ids=ids, ended=bool(end) or stopped))
    return found


def grouped(
    ids: list[list[int]], k: int, tokenizer: PreTrainedTokenizerBase, config: GenerationConfig
) -> list[list[Completion]]:
    """Generated ids, k to a prompt, as completions."""
    flat = completions(ids, tokenizer, config)
    return [flat[i : i + k] for i in range(0, len(flat), k)]
