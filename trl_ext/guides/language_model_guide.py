# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
Language models as a guide: the log-probability of each candidate under one, or its difference between two.

Dimensions: N sequences, k candidate tokens, D hidden size, V vocabulary.
"""

from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from trl_ext.decoding.guide import GuideContext
from trl_ext.models.backbone_and_head import BackboneAndHead
from trl_ext.models.tokenizers import vocabulary_mismatch

from .backbone_reader import BackboneReader
from .base_guide import BaseGuide
from .vocabulary import GuideVocabulary


class LanguageModelGuide(BaseGuide):
    """
    Language models that guide decoding: log pi_expert(a | s) - log pi_anti_expert(a | s) for each candidate a.

    With both models it is proxy-tuning, emulated fine-tuning or DExperts; with an expert alone an autoregressive
    reward model as in GenARM; with an anti-expert alone contrastive decoding, where the model that generates is the
    expert. Each model reads the last token only, with a KV cache: the complete vocabulary as candidates costs nothing
    more.

    Args:
        expert ([`~transformers.PreTrainedModel`], *optional*):
            Language model whose log-probabilities are added.
        anti_expert ([`~transformers.PreTrainedModel`], *optional*):
            Language model whose log-probabilities are subtracted. At least one of the two is needed.
        name (`str`, *optional*, defaults to `""`):
            Name in messages.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`], *optional*):
            The tokenizer of the language model that generates.
        expert_tokenizer, anti_expert_tokenizer ([`~transformers.PreTrainedTokenizerBase`], *optional*):
            The tokenizers of the two models, to be compared with it.

    Raises:
        `ValueError`: There is neither an expert nor an anti-expert, a vocabulary differs, or logits are not those of a
            head on the last hidden state.
    """

    heads = ("score",)
    scores_tokens = True

    def __init__(
        self,
        expert: Any = None,
        anti_expert: Any = None,
        *,
        name: str = "",
        tokenizer: PreTrainedTokenizerBase | None = None,
        expert_tokenizer: PreTrainedTokenizerBase | None = None,
        anti_expert_tokenizer: PreTrainedTokenizerBase | None = None,
    ) -> None:
        if expert is None and anti_expert is None:
            raise ValueError("A guide of language models needs an `expert`, an `anti_expert` or both.")
        self.who = f"language model {name!r}" if name else "language model"
        self._parts: list[tuple[int, TokenLogProbs]] = []
        for sign, role, model, own in (
            (1, "expert", expert, expert_tokenizer),
            (-1, "anti-expert", anti_expert, anti_expert_tokenizer),
        ):
            if model is not None:
                who = f"{role} of {name!r}" if name else role
                self._parts.append((sign, TokenLogProbs(model, who, tokenizer, own)))
        readers = [part.reader for _, part in self._parts]
        self.config = (expert or anti_expert).config
        self.vocabulary = min(reader.vocabulary.size for reader in readers)
        self.context_length = min((r.context_length for r in readers if r.context_length), default=0)

    @property
    def calls(self) -> int:
        """Forward passes of both models so far."""
        return sum(part.reader.calls for _, part in self._parts)

    @property
    def tokens(self) -> int:
        """Tokens in these forward passes, padding included."""
        return sum(part.reader.tokens for _, part in self._parts)

    def reset(self) -> None:
        """Free the memory of the KV caches."""
        for _, part in self._parts:
            part.reader.reset()

    def score(self, context: GuideContext, candidates_Nk: torch.Tensor) -> torch.Tensor:
        """
        Log-probabilities of the candidates, or their differences, in nats, (N, k).

        Raises:
            `ValueError`: A sequence has a token that a model does not have, or more of them than it has positions.
        """
        scores_Nk = torch.zeros(candidates_Nk.shape, device=candidates_Nk.device)
        for sign, part in self._parts:
            scores_Nk += sign * part(context, candidates_Nk).to(scores_Nk.device)
        return scores_Nk


class TokenLogProbs:
    """
    Log-probabilities of candidate tokens under a language model.

    Args:
        model ([`~transformers.PreTrainedModel`]): The language model.
        who (`str`): What it is, for messages.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`], *optional*): The tokenizer of the model that generates.
        own_tokenizer ([`~transformers.PreTrainedTokenizerBase`], *optional*): Its own tokenizer.

    Raises:
        `ValueError`: The vocabularies differ.
    """

    def __init__(
        self,
        model: Any,
        who: str,
        tokenizer: PreTrainedTokenizerBase | None,
        own_tokenizer: PreTrainedTokenizerBase | None,
    ) -> None:
        self.llm = BackboneAndHead(model.eval())
        compared = tokenizer is not None and own_tokenizer is not None
        differs = vocabulary_mismatch(tokenizer, own_tokenizer, who) if compared else ""  # type: ignore[arg-type]
        mismatch = differs and f"{differs} It scores tokens, so that both models need the same ones."
        vocabulary = GuideVocabulary(
            self.llm.vocabulary,
            who,
            tokenizer=tokenizer,
            compared=compared,
            mismatch=mismatch,
            argument=f"{who.partition(' ')[0].replace('-', '_')}_tokenizer",
        )
        self.reader = BackboneReader(self.llm.backbone, vocabulary)

    def __call__(self, context: GuideContext, candidates_Nk: torch.Tensor) -> torch.Tensor:
        """Log-probabilities (N, k) of candidates (N, k)."""
        logps_NV = self.llm.logits(self.reader.read(context)).log_softmax(-1)
        within_Nk = self.reader.vocabulary.within(candidates_Nk, context.vocabulary)
        return logps_NV.gather(1, within_Nk.to(logps_NV.device))
