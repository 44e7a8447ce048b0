# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
One model's tokens as another model's: by way of their text.

N sequences, S columns of them so far, k candidates for the next token, D hidden size.
"""

import torch
from transformers import PreTrainedTokenizerBase

from trl_ext.data.tokenization import left_padded
from trl_ext.decoding.tree_backends import RecomputeBackend
from trl_ext.generation_settings import pad_token_id
from trl_ext.models.modes import evaluation_mode


class Retokenizer:
    """
    Candidates for a model's next token, as whole sequences of another model's tokens.

    Special tokens have no text and are left out, but for a candidate that ends the sequence: the other tokenizer's end
    stands for it. Half a character at the end has no text either, so that a candidate which is one stands for the text
    before it.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): The tokenizer that the ids are from.
        other ([`~transformers.PreTrainedTokenizerBase`]): The tokenizer that they are wanted in.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase) -> None:
        self.tokenizer, self.other = tokenizer, other
        last = list(other("x")["input_ids"])[-1:]
        self.puts_end = other.eos_token_id is not None and last == [other.eos_token_id]

    def rows(self, ids_NS: torch.Tensor, mask_NS: torch.Tensor, candidates_Nk: torch.Tensor) -> list[list[int]]:
        """
        N x k sequences of the other tokenizer, a prefix's k next to one another.

        Raises:
            `ValueError`: A sequence has no text.
        """
        eos, end = self.tokenizer.eos_token_id, self.other.eos_token_id
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
            row = list(ids)[:-1] if self.puts_end else list(ids)
            if not row:
                n = i // candidates_Nk.shape[1]
                raise ValueError(f"Row {n} has no text, so that there is nothing to tokenize for the other model.")
            found.append([*row, end] if pairs[i][1] == eos and end is not None else row)
        return found


class TextReader:
    """
    The last hidden states of candidates, read by a model with another tokenizer: whole texts, without a cache.

    Args:
        backbone (`torch.nn.Module`): The model.
        retokenizer ([`Retokenizer`]): From the tokens of the candidates to those of the model.
    """

    def __init__(self, backbone: torch.nn.Module, retokenizer: Retokenizer) -> None:
        self.backbone, self.retokenizer = backbone, retokenizer
        self.form = RecomputeBackend(backbone, {})
        self.calls = self.tokens = 0

    @torch.no_grad()
    def branch(self, ids_NS: torch.Tensor, mask_NS: torch.Tensor, candidates_Nk: torch.Tensor) -> torch.Tensor:
        """
        Hidden states of the candidates, of shape (N, k, D).

        Raises:
            `ValueError`: A sequence has no text.
        """
        rows = self.retokenizer.rows(ids_NS, mask_NS, candidates_Nk)
        device = next(self.backbone.parameters()).device
        ids, mask = left_padded(rows, pad_token_id(self.retokenizer.other), device)
        self.calls += 1
        self.tokens += ids.numel()
        with evaluation_mode(self.backbone):
            return self.form.forward(ids, mask, 1, None)[:, 0].unflatten(0, candidates_Nk.shape)
