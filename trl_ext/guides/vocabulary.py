# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
The vocabulary of a model that guides, beside that of the language model.

Dimensions: N sequences, S columns of the sequences so far, k candidate tokens.
"""

import torch
from transformers import PreTrainedTokenizerBase

from .retokenize import Retokenizer


class GuideVocabulary:
    """
    The vocabulary of a model that guides: whether it is the language model's, and what to do about the difference.

    Args:
        size (`int`): Number of tokens of the model that guides.
        who (`str`): What it is, for messages.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`], *optional*): The language model's tokenizer.
        own_tokenizer ([`~transformers.PreTrainedTokenizerBase`], *optional*): The tokenizer of the model that guides.
        compared (`bool`): Whether the two vocabularies have been compared. If not, they are taken to be equal where
            they have one size.
        mismatch (`str`, *optional*, defaults to `""`): Why the two vocabularies differ; empty if they do not, or if
            that is not known.
        retokenize (`bool`, *optional*, defaults to `False`): Whether a model with another vocabulary reads the text in
            its own tokens.
        argument (`str`, *optional*, defaults to `"guide_tokenizer"`): Name of the argument with its tokenizer, for
            messages.

    Attributes:
        retokenizer ([`~trl_ext.guides.retokenize.Retokenizer`] or `None`): Converts texts for a model with another
            vocabulary.

    Raises:
        `ValueError`: The vocabularies differ, and the model is not to read the text in its own tokens.
    """

    def __init__(
        self,
        size: int,
        who: str,
        *,
        tokenizer: PreTrainedTokenizerBase | None = None,
        own_tokenizer: PreTrainedTokenizerBase | None = None,
        compared: bool,
        mismatch: str = "",
        retokenize: bool = False,
        argument: str = "guide_tokenizer",
    ) -> None:
        self.size, self.who, self.argument = size, who, argument
        self.compared = compared
        self.pad = tokenizer.pad_token_id if tokenizer is not None else None
        self.retokenizer: Retokenizer | None = None
        if tokenizer is not None and mismatch:
            if not retokenize or own_tokenizer is None:
                raise ValueError(mismatch)
            self.retokenizer = Retokenizer(tokenizer, own_tokenizer)

    def known(self, ids_NS: torch.Tensor, vocabulary: int) -> torch.Tensor:
        """
        The sequences, with the first token in place of a padding token that the model does not have.

        That is padding on the left, or after a sequence that has ended. For vocabularies of another size the
        tokenizers must be known to match.

        Args:
            ids_NS (`torch.Tensor` of shape `(N, S)`): Token ids of the sequences so far.
            vocabulary (`int`): Number of tokens of the language model.

        Raises:
            `ValueError`: A sequence has a token that the model does not have, or it is not known whether the
                tokenizers match.
        """
        if vocabulary == self.size:
            return ids_NS
        if not self.compared:
            raise ValueError(
                f"The language model has {vocabulary} tokens and the {self.who} {self.size}. If they have the same "
                f"tokenizer, pass both (`tokenizer=`, `{self.argument}=`) so that they can be compared; if not, add "
                "`retokenize=True`, which is slow."
            )
        if vocabulary < self.size:
            return ids_NS
        unknown_NS = ids_NS >= self.size
        text_NS = unknown_NS if self.pad is None else unknown_NS & (ids_NS != self.pad)
        if text_NS.any():
            raise ValueError(
                f"Token {int(ids_NS[text_NS][0])} is not in the vocabulary of the {self.who} ({self.size} tokens)."
            )
        return ids_NS.masked_fill(unknown_NS, 0)

    def within(self, candidates_Nk: torch.Tensor, vocabulary: int) -> torch.Tensor:
        """The candidates, with its last token in place of those that the model does not have."""
        return candidates_Nk if vocabulary == self.size else candidates_Nk.clamp(max=self.size - 1)
