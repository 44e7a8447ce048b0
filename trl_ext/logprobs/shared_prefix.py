# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
K completions of one prompt as rows for a causal language model: separate rows, or rows that share their prompt.

A shared row holds the prompt once and then its K completions. Completions attend to the prompt and to themselves, and
their positions continue the prompt's. Each completion is preceded by a copy of the prompt's last token: that copy
predicts the completion's first token, so every prediction has a position of its own and an unmodified fused language
model head serves both forms. It costs K - 1 tokens a prompt. Nothing predicts from the last token of a completion, so
no row carries it.

    separate    p1 p2 p3 a1 a2        shared    p1 p2 | p3 a1 a2 | p3 b1
                p1 p2 p3 b1           position   0  1    2  3  4    2  3

Rows for a model that judges the tokens of a completion, rather than predicting them, carry all of them and no copy.

    separate    p1 p2 p3 a1 a2 a3     shared    p1 p2 p3 | a1 a2 a3 | b1 b2

Letters: B prompts, N completions in all, L tokens a row, T tokens in all.
"""

from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from trl_ext.upstream import attention_implementation, supports_attention_backend

from .prefix_attention import CASCADE, CascadePlan


# Settings by which configs limit attention to near positions of a row, besides `layer_types`. A probe with few tokens
# cannot see a window that is longer.
_WINDOWS = ("sliding_window", "window_size", "attention_window_size", "attention_chunk_size")

IGNORE = -100  # label of a position that predicts nothing, as everywhere in transformers


@dataclass(frozen=True)
class Layout:
    """
    How a model takes completions that share a prompt.

    Args:
        form (`str`): `"separate"`, `"dense"` (a row a prompt, a 4-dimensional mask) or `"cascade"` (everything in one
            row, variable-length flash attention).
        reason (`str`): Why this form; said once in the log.
    """

    form: str
    reason: str


def supported_layout(model: PreTrainedModel) -> Layout:
    """
    The best form of shared rows that the attention of `model` computes exactly, judged from its config.

    [`~trl_ext.logprobs.logprobs.LogProbs`] confirms the judgement on the first batch by comparing the two forms.
    """
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    if kinds != {"full_attention"}:
        return Layout(
            "separate", f"layers of kind {', '.join(sorted(kinds - {'full_attention'}))} keep their own mask"
        )
    window = next((name for name in _WINDOWS if getattr(config, name, None)), None)
    if window is not None and getattr(config, "use_sliding_window", True):
        return Layout("separate", f"a window of attention (`{window}`) keeps its own mask")
    if model.config.is_encoder_decoder:
        return Layout("separate", "an encoder-decoder has no prompt in its decoder row")
    if not getattr(config, "num_attention_heads", None):
        return Layout("separate", "it has no attention heads")
    attention = attention_implementation(config)
    if attention == CASCADE or (
        attention in ("sdpa", "flash_attention_2")
        and supports_attention_backend(model)
        and model.device.type == "cuda"
        and torch.version.cuda is not None
        and torch.cuda.get_device_capability(model.device) >= (8, 0)
        and _flash_takes(config)
    ):
        return Layout("cascade", "two variable-length flash attention calls")
    if attention in ("sdpa", "eager"):
        return Layout("dense", f"a 4-dimensional mask under {attention} attention")
    return Layout("separate", f"attention {attention!r} takes no mask of our own")


def _flash_takes(config: Any) -> bool:
    """Whether torch's flash attention has the heads' width, and would leave out nothing that is done to scores."""
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    changes_scores = getattr(config, "attn_logit_softcapping", None) or getattr(config, "attention_dropout", 0.0)
    return head_dim % 8 == 0 and head_dim <= 256 and not changes_scores


# ------------------------------------------------------------------------------------------------------------- rows


def build_rows(
    prompts: list[list[int]],
    completions: list[list[list[int]]],
    *,
    form: str,
    pad_token_id: int,
    pad_to_multiple_of: int = 0,
    predict: bool = True,
) -> dict[str, Any]:
    """
    Tensors for one forward over the completions of some prompts.

    Args:
        prompts (`list[list[int]]`): B prompts of at least one token.
        completions (`list[list[list[int]]]`): For each prompt its completions, of at least one token each.
        form (`str`): `"separate"`, `"dense"` or `"cascade"`.
        pad_token_id (`int`): Token in padding.
        pad_to_multiple_of (`int`, *optional*, defaults to `0`): Round row lengths up to this (`0`: no rounding).
        predict (`bool`, *optional*, defaults to `True`): Whether the model predicts the completions' tokens. Otherwise
            it judges each of them: labels and index belong to the token itself.

    Returns:
        `dict`: `input_ids`, `position_ids`, `shift_labels` (the token each position predicts, -100 for none) and
        `completion_index` (which of the N completions that token belongs to, -1 for none), all of shape (rows, L); and
        `attention_mask` (rows, L) for separate rows, `segment_ids` (rows, L) for dense ones (0 the prompt, i the i-th
        completion, -1 padding), or `cu_segments` (B + N + 1), `cu_completions` and `cu_prompts` (B + 1) for a cascade.
    """
    pieces = _cascade_pieces if form == "cascade" else _shared_pieces if form == "dense" else _separate_pieces
    rows = pieces(prompts, completions, int(predict))
    fill = {"input_ids": pad_token_id, "position_ids": 0, "shift_labels": IGNORE, "completion_index": -1}
    fill["segment_ids"] = -1
    columns = {
        name: _pad(
            [torch.tensor([x for piece in row for x in piece[name]]) for row in rows], value, pad_to_multiple_of
        )
        for name, value in fill.items()
    }
    segments = columns.pop("segment_ids")
    if form == "separate":
        columns["attention_mask"] = (segments >= 0).long()
    elif form == "dense":
        columns["segment_ids"] = segments
    else:
        heads = [len(prompt) - predict for prompt in prompts]
        sizes = [[len(completion) for completion in group] for group in completions]
        columns["cu_segments"] = _cumulative(heads + [size for group in sizes for size in group])
        columns["cu_completions"] = _cumulative([sum(group) for group in sizes])
        columns["cu_prompts"] = _cumulative(heads)
    return columns


def _piece(ids: list[int], start: int, labels: list[int], index: int, segment: int) -> dict[str, list[int]]:
    n = len(ids)
    return {
        "input_ids": ids,
        "position_ids": list(range(start, start + n)),
        "shift_labels": [IGNORE] * (n - len(labels)) + labels,
        "completion_index": [-1] * (n - len(labels)) + [index] * len(labels),
        "segment_ids": [segment] * n,
    }


# `back` is 1 where tokens are predicted, from one position before their own, and 0 where they are judged.


def _separate_pieces(prompts: list, completions: list, back: int) -> list[list[dict]]:
    pairs = [(p, c) for p, group in zip(prompts, completions, strict=True) for c in group]
    return [[_piece(p + c[: len(c) - back], 0, c, index, 0)] for index, (p, c) in enumerate(pairs)]


def _completion_pieces(prompt: list[int], group: list[list[int]], first: int, back: int) -> list[dict]:
    start = len(prompt) - back
    return [_piece(prompt[start:] + c[: len(c) - back], start, c, first + i, i + 1) for i, c in enumerate(group)]


def _shared_pieces(prompts: list, completions: list, back: int) -> list[list[dict]]:
    firsts = accumulate((len(group) for group in completions), initial=0)
    return [
        [_piece(p[: len(p) - back], 0, [], -1, 0), *_completion_pieces(p, group, first, back)]
        for p, group, first in zip(prompts, completions, firsts, strict=False)
    ]


def _cascade_pieces(prompts: list, completions: list, back: int) -> list[list[dict]]:
    rows = _shared_pieces(prompts, completions, back)
    return [[row[0] for row in rows] + [piece for row in rows for piece in row[1:]]]


def _pad(rows: list[torch.Tensor], value: int, multiple: int) -> torch.Tensor:
    padded = pad_sequence([row.long() for row in rows], batch_first=True, padding_value=value)
    extra = -padded.shape[1] % multiple if multiple else 0
    return torch.nn.functional.pad(padded, (0, extra), value=value)


def _cumulative(lengths: list[int]) -> torch.Tensor:
    return torch.tensor(list(accumulate(lengths, initial=0)), dtype=torch.int32)


def choose_form(layout: Layout, prompts: list, completions: list, hidden_size: int, setting: str = "auto") -> str:
    """
    The cheaper of separate and shared rows for one batch.

    The cost of a form is its number of positions times (6 hidden_size + L): 24 hidden_size^2 operations in the linear
    maps of a layer and 4 L hidden_size in its attention, for a row of L positions.

    Args:
        layout ([`Layout`]): The form of shared rows that the model takes.
        prompts, completions (`list`): As for [`build_rows`].
        hidden_size (`int`): Width of the model.
        setting (`str`, *optional*, defaults to `"auto"`): `"always"` and `"never"` override the comparison.
    """
    if layout.form == "separate" or setting == "never":
        return "separate"
    if layout.form == "cascade" and any(len(prompt) < 2 for prompt in prompts):
        return "separate"  # a prompt of one token leaves nothing to share, and flash attention no keys
    if setting == "always":
        return layout.form
    longest = max(len(p) + len(c) - 1 for p, group in zip(prompts, completions, strict=True) for c in group)
    separate = sum(map(len, completions)) * longest * (6 * hidden_size + longest)
    totals = [len(p) - 1 + sum(map(len, group)) for p, group in zip(prompts, completions, strict=True)]
    if layout.form == "dense":
        shared = len(totals) * max(totals) * (6 * hidden_size + max(totals))
    else:
        shared = sum(totals) * (6 * hidden_size + longest)
    # Below a twentieth less, building the rows and their mask takes what is gained; ours, not tuned.
    return layout.form if shared < 0.95 * separate else "separate"


# -------------------------------------------------------------------------------------------------------- attention


def attention_inputs(
    rows: dict[str, torch.Tensor], attention: str, dtype: torch.dtype, device: torch.device
) -> dict[str, Any]:
    """
    What a model's forward needs besides ids and positions, for rows of any form.

    Args:
        rows (`dict`): From [`build_rows`].
        attention (`str`): The model's attention implementation; eager attention adds its mask to the scores.
        dtype (`torch.dtype`): Dtype of an additive mask.
        device (`torch.device`): Where the model is.
    """
    if "cu_segments" in rows:
        plan = CascadePlan(rows["cu_segments"], rows["cu_completions"], rows["cu_prompts"], device)
        # Without a mask transformers would see positions that start anew and build a (T, T) one; ours reads none.
        return {"prefix_plan": plan, "attention_mask": torch.ones(1, 1, 1, 1, dtype=torch.bool, device=device)}
    if "segment_ids" in rows:
        mask = dense_mask(rows["segment_ids"].to(device))
        if attention == "eager":
            mask = torch.zeros_like(mask, dtype=dtype).masked_fill_(~mask, torch.finfo(dtype).min)
        return {"attention_mask": mask}
    return {"attention_mask": rows["attention_mask"].to(device)}


def dense_mask(segment_ids: torch.Tensor) -> torch.Tensor:
    """
    Who may attend to whom: earlier positions of the prompt and of one's own completion.

    Args:
        segment_ids (`torch.Tensor` of shape (rows, L)): 0 the prompt, i the i-th completion, -1 padding.

    Returns:
        `torch.Tensor` of shape (rows, 1, L, L): True where the query (dim 2) sees the key (dim 3). Padding sees
        itself, because a row that sees nothing is NaN.
    """
    length = segment_ids.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=segment_ids.device).tril()
    query, key = segment_ids[:, :, None], segment_ids[:, None, :]
    own = torch.eye(length, dtype=torch.bool, device=segment_ids.device)
    return (causal & ((key == query) | (key == 0)) & (query >= 0) | own)[:, None]
