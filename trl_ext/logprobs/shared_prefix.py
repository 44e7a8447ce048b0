# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
Shared-prefix rows: the K completions of a prompt in one row that holds the prompt once, where the model supports it.

Completions attend to the prompt and to themselves, and their positions continue the prompt's. A copy of the prompt's
last token precedes each completion: it predicts the completion's first token, so that every prediction has its own
position and an unmodified fused language model head works for separate and shared rows. It costs K - 1 tokens per
prompt. The last token of a completion predicts nothing, so no row holds it.

    separate    p1 p2 p3 a1 a2        shared    p1 p2 | p3 a1 a2 | p3 b1
                p1 p2 p3 b1           position   0  1    2  3  4    2  3

Rows for a model that evaluates the tokens of a completion, rather than predicting them, hold all of them and no copy.

    separate    p1 p2 p3 a1 a2 a3     shared    p1 p2 p3 | a1 a2 a3 | b1 b2

Dimensions: B prompts, N completions in all, L tokens per row, T tokens in all.
"""

import logging
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from accelerate.utils import extract_model_from_parallel
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from trl_ext.devices import supports_flash_attention
from trl_ext.models.architecture import FULL, layer_kinds, score_cap
from trl_ext.models.probe import Tolerance, probe, probe_tokens
from trl_ext.models.properties import base_of
from trl_ext.upstream import attention_implementation, supports_attention_backend

from .prefix_attention import CASCADE, CascadePlan


logger = logging.getLogger(__name__)

SHARED_PREFIX_SETTINGS = ("auto", "always", "never")


IGNORE = -100  # label of a position that predicts nothing, as everywhere in transformers


@dataclass(frozen=True)
class Layout:
    """
    How a model takes completions that share a prompt.

    Args:
        form (`str`): `"separate"`, `"dense"` (one row per prompt, a 4-dimensional mask) or `"cascade"` (all prompts
            and completions in one row, variable-length flash attention).
        reason (`str`): Why this form; logged once.
    """

    form: str
    reason: str


def supported_layout(model: PreTrainedModel) -> Layout:
    """
    The best form of shared rows that the attention of `model` computes exactly, according to its config.

    [`SharedPrefixRows`] verifies it before the first batch.
    """
    config = model.config.get_text_config()
    other_kinds = layer_kinds(config) - {FULL}
    if other_kinds:
        return Layout("separate", f"layers of kind {', '.join(sorted(other_kinds))} apply their own mask")
    if model.config.is_encoder_decoder:
        return Layout("separate", "the decoder rows of an encoder-decoder hold no prompt")
    if not getattr(config, "num_attention_heads", None):
        return Layout("separate", "the model has no attention heads")
    attention = attention_implementation(config)
    if attention == CASCADE or (
        attention in ("sdpa", "flash_attention_2")
        and supports_attention_backend(model)
        and supports_flash_attention(model.device)
        and _flash_supports(config)
    ):
        return Layout("cascade", "two variable-length flash attention calls")
    if attention in ("sdpa", "eager"):
        return Layout("dense", f"a 4-dimensional mask under {attention} attention")
    return Layout("separate", f"{attention!r} attention takes no custom mask")


def _flash_supports(config: Any) -> bool:
    """Whether torch's flash attention supports the width of the heads and everything that is done to the scores."""
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    changes_scores = score_cap(config) or getattr(config, "attention_dropout", 0.0)
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
    Tensors for one forward pass over the completions of some prompts.

    Args:
        prompts (`list[list[int]]`): B prompts of at least one token.
        completions (`list[list[list[int]]]`): For each prompt its completions, of at least one token each.
        form (`str`): `"separate"`, `"dense"` or `"cascade"`.
        pad_token_id (`int`): Token in padding.
        pad_to_multiple_of (`int`, *optional*, defaults to `0`): Round row lengths up to this (`0`: no rounding).
        predict (`bool`, *optional*, defaults to `True`): Whether the model predicts the completions' tokens. Otherwise
            it evaluates each of them: labels and index belong to the token itself.

    Returns:
        `dict`: `input_ids`, `position_ids`, `shift_labels` (the token each position predicts, -100 for none),
        `completion_index` (which of the N completions that token belongs to, -1 for none) and `counts` (how many
        separate rows hold the token, 0 for padding), all of shape (rows, L); and `attention_mask` (rows, L) for
        separate rows, `segment_ids` (rows, L) for dense ones (0 the prompt, i the i-th completion, -1 padding), or
        `cu_segments` (B + N + 1), `cu_completions` and `cu_prompts` (B + 1) for a cascade.
    """
    pieces = {"separate": _separate_pieces, "dense": _shared_pieces, "cascade": _cascade_pieces}[form]
    rows = pieces(prompts, completions, int(predict))
    padding = {"input_ids": pad_token_id, "position_ids": 0, "shift_labels": IGNORE}
    padding |= {"completion_index": -1, "segment_ids": -1, "counts": 0}
    columns = {}
    for name, value in padding.items():
        tensors = [torch.tensor([x for piece in row for x in piece[name]]) for row in rows]
        columns[name] = _pad(tensors, value, pad_to_multiple_of)
    segments = columns.pop("segment_ids")
    if form == "separate":
        columns["attention_mask"] = (segments >= 0).long()
    elif form == "dense":
        columns["segment_ids"] = segments
    else:
        shared = [len(prompt) - predict for prompt in prompts]
        sizes = [[len(completion) for completion in group] for group in completions]
        columns["cu_segments"] = _cumulative(shared + [size for group in sizes for size in group])
        columns["cu_completions"] = _cumulative([sum(group) for group in sizes])
        columns["cu_prompts"] = _cumulative(shared)
    return columns


def _piece(
    ids: list[int], start: int, labels: list[int], index: int, segment: int, count: int = 1
) -> dict[str, list[int]]:
    n = len(ids)
    return {
        "input_ids": ids,
        "position_ids": list(range(start, start + n)),
        "shift_labels": [IGNORE] * (n - len(labels)) + labels,
        "completion_index": [-1] * (n - len(labels)) + [index] * len(labels),
        "segment_ids": [segment] * n,
        "counts": [count] * n,
    }


# `back` is 1 where tokens are predicted, from one position before their own, and 0 where they are evaluated.


def _separate_pieces(prompts: list, completions: list, back: int) -> list[list[dict]]:
    pairs = [(p, c) for p, group in zip(prompts, completions, strict=True) for c in group]
    return [[_piece(p + c[: len(c) - back], 0, c, index, 0)] for index, (p, c) in enumerate(pairs)]


def _completion_pieces(prompt: list[int], group: list[list[int]], first: int, back: int) -> list[dict]:
    start = len(prompt) - back
    return [_piece(prompt[start:] + c[: len(c) - back], start, c, first + i, i + 1) for i, c in enumerate(group)]


def _shared_pieces(prompts: list, completions: list, back: int) -> list[list[dict]]:
    firsts = accumulate((len(group) for group in completions), initial=0)
    return [
        [_piece(p[: len(p) - back], 0, [], -1, 0, len(group)), *_completion_pieces(p, group, next(firsts), back)]
        for p, group in zip(prompts, completions, strict=True)
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
    # A saving below 5 % is lost to building the rows and their mask. Our choice, not tuned.
    return layout.form if shared < 0.95 * separate else "separate"


# -------------------------------------------------------------------------------------------------------- attention


def attention_inputs(
    rows: dict[str, torch.Tensor], attention: str, dtype: torch.dtype, device: torch.device
) -> dict[str, Any]:
    """
    Arguments of a model's forward besides ids and positions, for rows of any form.

    Args:
        rows (`dict`): From [`build_rows`].
        attention (`str`): The model's attention implementation; eager attention adds its mask to the scores.
        dtype (`torch.dtype`): Dtype of an additive mask.
        device (`torch.device`): Where the model is.
    """
    if "cu_segments" in rows:
        plan = CascadePlan(rows["cu_segments"], rows["cu_completions"], rows["cu_prompts"], device)
        # Without a mask, transformers would see that positions start again and build a (T, T) one. Ours reads none.
        return {"prefix_plan": plan, "attention_mask": torch.ones(1, 1, 1, 1, dtype=torch.bool, device=device)}
    if "segment_ids" in rows:
        mask = dense_mask(rows["segment_ids"].to(device))
        if attention == "eager":
            mask = torch.zeros_like(mask, dtype=dtype).masked_fill_(~mask, torch.finfo(dtype).min)
        return {"attention_mask": mask}
    return {"attention_mask": rows["attention_mask"].to(device)}


def dense_mask(segment_ids: torch.Tensor) -> torch.Tensor:
    """
    Attention mask in which a position sees earlier positions of the prompt and of its own completion.

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


# ----------------------------------------------------------------------------------------- choosing and verifying


class SharedPrefixRows:
    """
    Lays out the completions of a batch as separate or shared rows. A subclass defines what is computed from them.

    The form of shared rows is chosen from the model's config. Before the first batch it is compared with separate rows
    on a few tokens; where the model computes something else, its rows stay separate.

    Args:
        base ([`~transformers.PreTrainedModel`]): The transformers model, inside adapters and wrappers.
        pad_token_id (`int`): Token in padding.
        predict (`bool`, *optional*, defaults to `True`): As for [`build_rows`].
        shared_prefix (`str`, *optional*, defaults to `"auto"`): `"auto"` shares a prompt where that is cheaper,
            `"always"` wherever the model supports it, `"never"` keeps separate rows.
        pad_to_multiple_of (`int`, *optional*, defaults to `0`): Round row lengths up to this (`0`: no rounding).

    Attributes:
        layout ([`Layout`]): The form of shared rows.

    Raises:
        `ValueError`: `shared_prefix` is none of the three.
    """

    quantity = "results"  # what `probe_values` returns, for messages
    tolerance = Tolerance(rounded=4e-3, of_effect=0.2, smallest_norm=1.0)

    def __init__(
        self,
        base: PreTrainedModel,
        pad_token_id: int,
        *,
        predict: bool = True,
        shared_prefix: str = "auto",
        pad_to_multiple_of: int = 0,
    ) -> None:
        if shared_prefix not in SHARED_PREFIX_SETTINGS:
            raise ValueError(f"`shared_prefix` must be one of {SHARED_PREFIX_SETTINGS}, got {shared_prefix!r}.")
        self.pad_token_id = pad_token_id
        self.predict = predict
        self.shared_prefix = shared_prefix
        self.pad_to_multiple_of = pad_to_multiple_of
        self.hidden_size = base.config.get_text_config().hidden_size
        self._verified = False
        self._choose_layout(base)

    def base_in(self, model: torch.nn.Module) -> PreTrainedModel:
        """The transformers model whose attention the rows are for, inside a model without its distributed wrapper."""
        return base_of(model)

    def probe_values(self, model: torch.nn.Module, form: str, prompts: list, completions: list) -> torch.Tensor:
        """Vectors (n, D) computed for completions, in an order that does not depend on the form of the rows."""
        raise NotImplementedError

    def form_of(self, prompts: list, completions: list) -> str:
        """The form of rows for a batch: `"separate"`, or the form in `layout` where sharing is cheaper."""
        return choose_form(self.layout, prompts, completions, self.hidden_size, self.shared_prefix)

    def inputs(
        self, model: torch.nn.Module, form: str, prompts: list, completions: list
    ) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """The rows of a batch, as [`build_rows`] returns them, and the arguments of `model` for them."""
        parameter = next(model.parameters())
        rows = build_rows(
            prompts,
            completions,
            form=form,
            pad_token_id=self.pad_token_id,
            pad_to_multiple_of=0 if form == "cascade" else self.pad_to_multiple_of,
            predict=self.predict,
        )
        inputs: dict[str, Any] = {"input_ids": rows["input_ids"].to(parameter.device)}
        if form != "separate":  # in separate rows the model counts positions itself: some do not count from 0
            inputs["position_ids"] = rows["position_ids"].to(parameter.device)
        return rows, inputs | attention_inputs(rows, self.attention, parameter.dtype, parameter.device)

    def verify(self, model: torch.nn.Module) -> None:
        """
        Compares shared with separate rows, once, and falls back from flash attention to a mask to separate rows.

        Args:
            model (`torch.nn.Module`): The model, possibly in a distributed wrapper.
        """
        if self._verified:
            return
        self._verified = True
        base = self.base_in(unwrapped(model))
        if next(base.parameters()).device.type != self._device:
            self._choose_layout(base)  # trainers move the model to its device after they were given it
        vocabulary = base.config.get_text_config().vocab_size
        self.verify_reference(model, probe_batch(vocabulary))
        while self.layout.form != "separate":
            reason = self._layout_reason(model, vocabulary)
            if reason is None:
                logger.info("Prompts are shared between completions by %s.", self.layout.reason)
                return
            self._fall_back(base, reason)

    def verify_reference(self, model: torch.nn.Module, batch: tuple[list, list]) -> None:
        """For subclasses that use a fast path in separate rows too: verifies it before shared rows are compared."""

    def _layout_reason(self, model: torch.nn.Module, vocabulary: int) -> str | None:
        batch = probe_batch(vocabulary)
        return probe(
            model,
            (type(self).__name__, self.predict, self.layout.form, self.attention),
            lambda: self.probe_values(model, self.layout.form, *batch),
            lambda: self.probe_values(model, "separate", *batch),
            self.tolerance,
            altered=lambda: self.probe_values(model, "separate", *probe_batch(vocabulary, altered=True)),
            relaid=lambda: self._padded_probe_values(model, batch),
            quantity=self.quantity,
        )

    def _padded_probe_values(self, model: torch.nn.Module, batch: tuple[list, list]) -> torch.Tensor:
        """The values of separate rows with more padding, which differ by rounding alone."""
        kept = self.pad_to_multiple_of
        self.pad_to_multiple_of = max(16, 2 * kept)  # the rows of the batch have up to 8 tokens
        try:
            return self.probe_values(model, "separate", *batch)
        finally:
            self.pad_to_multiple_of = kept

    def _choose_layout(self, base: PreTrainedModel) -> None:
        """Chooses the form of shared rows from the config and the device."""
        self._device = next(base.parameters()).device.type
        if self.shared_prefix == "never":
            self.layout = Layout("separate", "`shared_prefix` is 'never'")
        else:
            self.layout = supported_layout(base)
        if self.layout.form == "cascade":
            base.set_attn_implementation(CASCADE)
        self.attention = attention_implementation(base.config.get_text_config())

    def _fall_back(self, base: PreTrainedModel, reason: str) -> None:
        if self.layout.form == "cascade":
            base.set_attn_implementation("sdpa")
            self.attention = "sdpa"
            logger.warning("Shared prompts use a mask instead of flash attention, with which %s.", reason)
            self.layout = Layout("dense", "a 4-dimensional mask under sdpa attention")
        else:
            logger.warning("Prompts are not shared between completions, because then %s.", reason)
            self.layout = Layout("separate", reason)


def unwrapped(model: torch.nn.Module) -> torch.nn.Module:
    """The model inside its distributed wrapper."""
    inner: Any = extract_model_from_parallel(model)
    return getattr(inner, "module", inner)  # type: ignore[no-any-return]


def probe_batch(vocabulary: int, altered: bool = False) -> tuple[list[list[int]], list[list[list[int]]]]:
    """Prompts and completions to verify a layout with: of two lengths each, and with other prompts if `altered`."""
    ids = probe_tokens(vocabulary, 13)
    prompts, completions = [ids[:4], ids[2:4]], [[ids[4:8], ids[8:10]], [ids[10:13], ids[5:9]]]
    if altered:
        prompts = [[(i + 5) % vocabulary for i in prompt] for prompt in prompts]
    return prompts, completions
