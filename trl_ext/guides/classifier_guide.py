# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
A classifier or reward model as a guide: its score of the text with each candidate.

Dimensions: N sequences, k candidate tokens, D hidden size, L labels.
"""

import logging
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from trl_ext.decoding.guide import GuideContext
from trl_ext.models.probe import Tolerance, probe, probe_tokens
from trl_ext.models.properties import backbone_of, base_of, is_causal
from trl_ext.models.tokenizers import vocabulary_mismatch
from trl_ext.rewards.classifiers import ClassifierReward, label_index
from trl_ext.upstream import get_config_model_id

from .backbone_reader import BackboneReader
from .base_guide import BaseGuide
from .vocabulary import GuideVocabulary


logger = logging.getLogger(__name__)

OUTPUTS = ("logit", "probability", "log_probability")

_HEADS = ("score", "classifier")  # what transformers calls the heads of its classifiers
_TOLERANCE = Tolerance(precise=1e-3, rounded=0.05)


class ClassifierGuide(BaseGuide):
    """
    A sequence classifier, reward model or token classifier that guides decoding.

    A model that reads in one direction (as decoder-only reward models do) reads the language model's tokens, its chat
    template included: all candidates of a sequence in one forward pass, with a KV cache. An encoder, or a model with
    another vocabulary, reads the text of each candidate in full, which is slow and needs `retokenize`.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            The classifier: of sequences, or of tokens, where the label of the last token counts.
        name (`str`, *optional*, defaults to `""`):
            Its name in messages.
        label (`str`, *optional*, defaults to `""`):
            Name or number of the label that is scored. Needed for a model with several labels.
        output (`str`, *optional*, defaults to `"logit"`):
            `"logit"` as ARGS uses it, `"probability"`, or `"log_probability"` as FUDGE does. The probability is the
            sigmoid of the logit for a model with one label or with independent ones, else the softmax over labels.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`], *optional*):
            The language model's tokenizer.
        own_tokenizer ([`~transformers.PreTrainedTokenizerBase`], *optional*):
            The classifier's tokenizer.
        retokenize (`bool`, *optional*, defaults to `False`):
            Whether a classifier that cannot read the language model's tokens reads its text.

    Raises:
        `ValueError`: `output` or `label` does not exist; the classifier cannot read the language model's tokens, and
            is not to read its text; or its logits are not those of a head on its last hidden state.
    """

    heads = ("score",)
    reads_candidates = True

    def __init__(
        self,
        model: Any,
        *,
        name: str = "",
        label: str = "",
        output: str = "logit",
        tokenizer: PreTrainedTokenizerBase | None = None,
        own_tokenizer: PreTrainedTokenizerBase | None = None,
        retokenize: bool = False,
    ) -> None:
        if output not in OUTPUTS:
            raise ValueError(f"`output` must be one of {', '.join(OUTPUTS)}, got {output!r}.")
        self.who = f"classifier {name!r}" if name else "classifier"
        self.model, self.output = model.eval(), output
        self.label = label_index(model.config, label, self.who, "label")
        multi_label = getattr(model.config, "problem_type", None) == "multi_label_classification"
        self._independent = multi_label or getattr(model.config, "num_labels", 1) == 1
        self.reader: BackboneReader | None = None
        self._texts: ClassifierReward | None = None
        if is_causal(model):
            self._read_tokens(tokenizer, own_tokenizer, retokenize)
        else:
            self._read_texts(tokenizer, own_tokenizer, retokenize)

    def _read_tokens(
        self,
        tokenizer: PreTrainedTokenizerBase | None,
        own_tokenizer: PreTrainedTokenizerBase | None,
        retokenize: bool,
    ) -> None:
        """Prepare a model that reads in one direction."""
        base: Any = base_of(self.model)
        self.config = base.config
        size = base.config.get_text_config().vocab_size
        compared = tokenizer is not None and own_tokenizer is not None
        differs = vocabulary_mismatch(tokenizer, own_tokenizer, self.who) if compared else ""  # type: ignore[arg-type]
        vocabulary = GuideVocabulary(
            size,
            self.who,
            tokenizer=tokenizer,
            own_tokenizer=own_tokenizer,
            compared=compared,
            mismatch=differs and f"{differs} It can read the text in its own tokens, which is slow: `retokenize`.",
            retokenize=retokenize,
            argument="own_tokenizer",
        )
        self.vocabulary = 0 if vocabulary.retokenizer else size
        self._head = next((getattr(base, head) for head in _HEADS if hasattr(base, head)), None)
        reason = "it has none" if self._head is None else self._head_reason(base, size)
        if reason:
            raise ValueError(
                f"The {self.who} ({type(base).__name__}) has no score head that could be applied to its last hidden "
                f"state: {reason}. Use a model with such a head, or a function."
            )
        self.reader = BackboneReader(backbone_of(self.model), vocabulary)
        self.context_length = self.reader.context_length
        if vocabulary.retokenizer is not None:
            logger.warning(
                "The %s has another vocabulary: it reads the text of each candidate in full, without a KV cache.",
                self.who,
            )

    def _head_reason(self, base: Any, size: int) -> str | None:
        """Why the logits of the model are not its head on its last hidden state; `None` if they are."""
        ids = probe_tokens(size, 4)
        if ids[-1] == base.config.get_text_config().pad_token_id:
            ids.pop()  # a classifier of sequences takes padding for the end
        ids_1T = torch.tensor([ids], device=next(base.parameters()).device)

        def of_model() -> torch.Tensor:
            logits = base(input_ids=ids_1T).logits
            return logits[:, -1] if logits.dim() == 3 else logits

        return probe(
            base,
            "score head",
            lambda: self._logits(backbone_of(base)(input_ids=ids_1T).last_hidden_state[:, -1]),
            of_model,
            _TOLERANCE,
            quantity="logits",
        )

    def _logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits (..., L) after hidden states (..., D)."""
        head: Any = self._head
        weight = next(head.parameters())
        return head(hidden.to(weight.dtype) if weight.is_floating_point() else hidden).float()

    def _read_texts(
        self,
        tokenizer: PreTrainedTokenizerBase | None,
        own_tokenizer: PreTrainedTokenizerBase | None,
        retokenize: bool,
    ) -> None:
        """Prepare an encoder, which has to read each text in full."""
        if not retokenize or tokenizer is None or own_tokenizer is None:
            raise ValueError(
                f"The {self.who} ({type(base_of(self.model)).__name__}) does not read in one direction, so it has "
                "to read the text of each candidate in full. That is slow: set `retokenize` if you want it (in Python "
                "with `tokenizer` and `own_tokenizer`), or use a decoder-only classifier."
            )
        logger.warning(
            "The %s does not read in one direction: it reads the text of each candidate in full, without a KV cache.",
            self.who,
        )
        self._texts = ClassifierReward(self.model, own_tokenizer, head=str(self.label))

    @property
    def calls(self) -> int:
        """Forward passes over tokens so far."""
        return 0 if self.reader is None else self.reader.calls

    @property
    def tokens(self) -> int:
        """Tokens in these forward passes, padding included."""
        return 0 if self.reader is None else self.reader.tokens

    def reset(self) -> None:
        """Free the memory of the KV cache."""
        if self.reader is not None:
            self.reader.reset()

    def score(self, context: GuideContext, candidates_Nk: torch.Tensor) -> torch.Tensor:
        """
        Scores of the texts with each candidate token appended, (N, k).

        Raises:
            `ValueError`: A sequence has a token that the classifier does not have, or more of them than it has
                positions; or it is to read texts, and the tokenizer is not known.
        """
        if self._texts is not None:
            texts = [text for row in context.texts(candidates_Nk) for text in row]
            logits = self._texts.label_logits([""] * len(texts), texts)
            logits_NkL = torch.tensor(logits).unflatten(0, candidates_Nk.shape)
        else:
            assert self.reader is not None
            logits_NkL = self._logits(self.reader.branch(context, candidates_Nk))
        return label_output(logits_NkL, self.label, self.output, independent=self._independent)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({get_config_model_id(self.model.config)!r}, {self.output} of {self.label})"


def label_output(logits: torch.Tensor, label: int, output: str, *, independent: bool) -> torch.Tensor:
    """
    What a classifier says about one label.

    Args:
        logits (`torch.Tensor` of shape `(..., L)`): Logits of all labels.
        label (`int`): The label.
        output (`str`): `"logit"`, `"probability"` or `"log_probability"`.
        independent (`bool`): Whether labels have probabilities of their own (sigmoid) or one distribution (softmax).

    Returns:
        `torch.Tensor` of shape `(...)`.
    """
    if output == "logit":
        return logits[..., label]
    if independent:
        log_probability = torch.nn.functional.logsigmoid(logits[..., label])
    else:
        log_probability = logits.log_softmax(-1)[..., label]
    return log_probability if output == "log_probability" else log_probability.exp()
