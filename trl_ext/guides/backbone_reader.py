# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
Hidden states of a model that guides: at the last token of each sequence, or at each candidate after it.

Dimensions: N sequences, S columns of the sequences so far, k candidate tokens, D hidden size.
"""

import logging

import torch

from trl_ext.decoding.guide import GuideContext
from trl_ext.models.properties import context_length, learned_positions

from .follower import Follower
from .retokenize import TextReader
from .vocabulary import GuideVocabulary


logger = logging.getLogger(__name__)


class BackboneReader:
    """
    Reads the sequences with the backbone of a model that guides, which may have another device or vocabulary.

    With the language model's vocabulary it keeps a KV cache, and reads all candidates of a sequence in one forward
    pass ([`~trl_ext.guides.follower.Follower`]). With another one it reads the text of each candidate in full
    ([`~trl_ext.guides.retokenize.TextReader`]).

    Args:
        backbone ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]): The model, without its head.
        vocabulary ([`~trl_ext.guides.vocabulary.GuideVocabulary`]): Its vocabulary.

    Attributes:
        context_length (`int`): Maximum number of tokens of a text; `0` if not known.
    """

    def __init__(self, backbone: torch.nn.Module, vocabulary: GuideVocabulary) -> None:
        self.backbone, self.vocabulary = backbone, vocabulary
        self.context_length = context_length(backbone)
        self.learned_positions = learned_positions(backbone)
        self._warned = False
        retokenizer = vocabulary.retokenizer
        self.reads: Follower | TextReader = (
            Follower(backbone) if retokenizer is None else TextReader(backbone, retokenizer)
        )

    @property
    def device(self) -> torch.device:
        """Where the model reads."""
        return next(self.backbone.parameters()).device

    @property
    def calls(self) -> int:
        """Forward passes so far."""
        return self.reads.calls

    @property
    def tokens(self) -> int:
        """Tokens in them, padding included."""
        return self.reads.tokens

    def reset(self) -> None:
        """Free the memory of the KV cache."""
        if isinstance(self.reads, Follower):
            self.reads.reset()

    def branch(self, context: GuideContext, candidates_Nk: torch.Tensor) -> torch.Tensor:
        """
        Hidden states at candidate tokens, each appended to its sequence.

        Args:
            context ([`~trl_ext.decoding.guide.GuideContext`]): The sequences so far.
            candidates_Nk (`torch.Tensor` of shape `(N, k)`): The candidate tokens.

        Returns:
            `torch.Tensor` of shape `(N, k, D)`. Those of tokens that the model does not have are undefined.

        Raises:
            `ValueError`: A sequence has a token that the model does not have, or more of them than it has positions.
        """
        if isinstance(self.reads, TextReader):
            return self.reads.branch(context.ids_NS, context.mask(), candidates_Nk, context.end_token_ids)
        batch = context.batch or context  # the cache has all rows
        known_NS = self._checked(batch, 1)
        candidates_Nk = self.vocabulary.within(candidates_Nk, context.vocabulary).to(self.device)
        return self.reads.branch(
            known_NS,
            candidates_Nk,
            lambda _: batch.mask(),  # of ids with the padding tokens
            rows_R=None if context.rows_N is None else context.rows_N.to(self.device),
            goes_on=context.goes_on,
        )

    def read(self, context: GuideContext) -> torch.Tensor:
        """
        Hidden states at the last token of each sequence.

        Args:
            context ([`~trl_ext.decoding.guide.GuideContext`]): The sequences so far.

        Returns:
            `torch.Tensor` of shape `(N, D)`.

        Raises:
            `ValueError`: As [`branch`]; or the model has another vocabulary, in which it cannot score tokens.
        """
        if isinstance(self.reads, TextReader):
            raise ValueError(f"The {self.vocabulary.who} scores tokens of its own vocabulary, which is another.")
        batch = context.batch or context
        hidden_ND = self.reads.read(self._checked(batch, 0), lambda _: batch.mask(), goes_on=context.goes_on)
        return hidden_ND if context.rows_N is None else hidden_ND[context.rows_N.to(self.device)]

    def _checked(self, context: GuideContext, further: int) -> torch.Tensor:
        """The sequences as the model can read them, with so many `further` tokens."""
        known_NS = self.vocabulary.known(context.ids_NS, context.vocabulary)
        columns = known_NS.shape[1] + further
        if 0 < self.context_length < columns and not self._warned:
            self.check_length(columns - int((context.mask() == 0).sum(1).min()))
        return known_NS.to(self.device)

    def check_length(self, length: int) -> None:
        """Raise `ValueError` if the model has no position for a text of this length; warn once beyond its context."""
        if self._warned or not 0 < self.context_length < length:
            return
        who = self.vocabulary.who
        found = f"The {who} has a context of {self.context_length} tokens, and a text has {length}"
        if self.learned_positions:
            raise ValueError(
                f"{found}: it has no position for the last one. Shorten the prompt or `max_new_tokens`, or guide with "
                "a model of a longer context."
            )
        logger.warning("%s: scores beyond its context mean little.", found)
        self._warned = True
