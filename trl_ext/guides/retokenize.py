# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
Converts candidate tokens of one vocabulary into sequences of another, through their text.

Dimensions: N sequences, S columns of the sequences so far, k candidate tokens, D hidden size.
"""

from collections.abc import Collection

import torch
from transformers import PreTrainedTokenizerBase

from trl_ext.data.tokenization import left_padded
from trl_ext.decoding.tree_backends import RecomputeBackend
from trl_ext.generation_settings import pad_token_id
from trl_ext.models.modes import evaluation_mode


class Retokenizer:
    """
    Tokenizes sequences with each of their candidate tokens again, for a model with another tokenizer.

    Special tokens have no text and are left out, except for a candidate that ends the sequence, as the end of a turn
    does: it becomes the other tokenizer's end of sequence. An incomplete character at the end is left out too, so a
    candidate that is one leads to the text before it.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): The tokenizer of the given ids.
        other ([`~transformers.PreTrainedTokenizerBase`]): The tokenizer of the returned ids.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase) -> None:
        self.tokenizer, self.other = tokenizer, other
        last = list(other("x")["input_ids"])[-1:]
        self.appends_end = other.eos_token_id is not None and last == [other.eos_token_id]

    def rows(
        self,
        ids_NS: torch.Tensor,
        mask_NS: torch.Tensor,
        candidates_Nk: torch.Tensor,
        end_token_ids: Collection[int] = (),
    ) -> list[list[int]]:
        """
        Sequences in the other tokenizer's ids.

        Args:
            ids_NS (`torch.LongTensor`): Sequences of shape (N, S).
            mask_NS (`torch.Tensor`): 1 for their tokens, 0 for padding, of shape (N, S).
            candidates_Nk (`torch.LongTensor`): Candidate tokens of shape (N, k).
            end_token_ids (`Collection[int]`, *optional*): Tokens that end a sequence, beside the tokenizer's end of
                sequence.

        Returns:
            `list[list[int]]`: N x k sequences, those of one prefix next to one another.

        Raises:
            `ValueError`: A sequence has no text.
        """
        ends, end = {self.tokenizer.eos_token_id, *end_token_ids}, self.other.eos_token_id
        prefixes = [ids[mask].tolist() for ids, mask in zip(ids_NS, mask_NS.bool(), strict=True)]
        pairs = [
            (prefix, token)
            for prefix, tokens in zip(prefixes, candidates_Nk.tolist(), strict=True)
            for token in tokens
        ]
        texts = self.tokenizer.batch_decode(
            [[*prefix, token] for prefix, token in pairs], skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        found = []
        for i, ids in enumerate(self.other([text.rstrip("\ufffd") for text in texts])["input_ids"]):
            row = list(ids)[:-1] if self.appends_end else list(ids)
            if not row:
                n = i // candidates_Nk.shape[1]
                raise ValueError(f"Row {n} has no text, so there is nothing to tokenize for the other model.")
            found.append([*row, end] if pairs[i][1] in ends and end is not None else row)
        return found


class TextReader:
    """
    Computes hidden states of candidate tokens with a model of another vocabulary. It reads each text in full, without
    a KV cache.

    Args:
        backbone (`torch.nn.Module`): The model, without its head.
        retokenizer ([`Retokenizer`]): Converts the candidates into the model's tokens.

    Attributes:
        calls (`int`): Number of forward passes.
        tokens (`int`): Number of tokens in them, padding included.
    """

    def __init__(self, backbone: torch.nn.Module, retokenizer: Retokenizer) -> None:
        self.backbone, self.retokenizer = backbone, retokenizer
        self.backend = RecomputeBackend(backbone, {})
        self.calls = self.tokens = 0

    @torch.no_grad()
    def branch(
        self,
        ids_NS: torch.Tensor,
        mask_NS: torch.Tensor,
        candidates_Nk: torch.Tensor,
        end_token_ids: Collection[int] = (),
    ) -> torch.Tensor:
        """
        Hidden states after each candidate.

        Args:
            ids_NS, mask_NS, candidates_Nk, end_token_ids: As for [`Retokenizer.rows`].

        Returns:
            `torch.Tensor`: Hidden states of shape (N, k, D).

        Raises:
            `ValueError`: A sequence has no text.
        """
        rows = self.retokenizer.rows(ids_NS, mask_NS, candidates_Nk, end_token_ids)
        device = next(self.backbone.parameters()).device
        ids, mask = left_padded(rows, pad_token_id(self.retokenizer.other), device)
        self.calls += 1
        self.tokens += ids.numel()
        with evaluation_mode(self.backbone):
            return self.backend.forward(ids, mask, 1, None)[:, 0].unflatten(0, candidates_Nk.shape)
