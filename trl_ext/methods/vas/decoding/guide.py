# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
One value model that guides decoding: its values of candidate tokens, and whether it shares the vocabulary.

Dimensions: N sequences, S columns of the sequences so far, k candidate tokens, H heads of the value model.
"""

import logging
from collections.abc import Callable

import torch
from transformers import PreTrainedTokenizerBase

from trl_ext.models.properties import context_length, learned_positions
from trl_ext.models.tokenizers import vocabulary_mismatch
from trl_ext.vocabulary import vocabulary_digest

from ..head_weights import full_names
from ..value_model.model import ValueModel
from .retokenize import Retokenizer, TextReader
from .tree_follower import Follower


logger = logging.getLogger(__name__)


class Guide:
    """
    A value model that guides decoding.

    Args:
        model ([`ValueModel`]): The value model.
        name (`str`): Its name; `""` for the only one.
        first_head (`int`): Number of heads of the value models before it.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`], *optional*): The language model's tokenizer.
        value_tokenizer ([`~transformers.PreTrainedTokenizerBase`], *optional*): The value model's tokenizer. By
            default the digest of the vocabulary in the value model's config is compared with `tokenizer`.
        retokenize (`bool`): Whether the value model may have another vocabulary, and then reads the text in its own
            tokens.

    Attributes:
        heads (`list[str]`): Full names of its heads, as in `beta`.
        columns (`slice`): Positions of its heads among those of all value models.

    Raises:
        `ValueError`: The vocabularies differ, or the value model was loaded without the language model that it needs.
    """

    def __init__(
        self,
        model: ValueModel,
        name: str,
        first_head: int,
        *,
        tokenizer: PreTrainedTokenizerBase | None,
        value_tokenizer: PreTrainedTokenizerBase | None,
        retokenize: bool,
    ) -> None:
        self.model = model
        self.heads = full_names(name, list(model.head_names))
        self.columns = slice(first_head, first_head + len(self.heads))
        self.vocabulary = model.config.get_text_config().vocab_size
        self.context = context_length(model.backbone)
        self.learned_positions = learned_positions(model.backbone)
        self.who = f"value model {name!r}" if name else "value model"
        self.tokenizers_match = tokenizer is not None
        self.pad = tokenizer.pad_token_id if tokenizer is not None else None
        self.retokenizer: Retokenizer | None = None
        if tokenizer is not None:
            mismatch = value_vocabulary_mismatch(tokenizer, value_tokenizer or model, name)
            if mismatch:
                if not retokenize or value_tokenizer is None:
                    raise ValueError(mismatch)
                self.retokenizer = Retokenizer(tokenizer, value_tokenizer)
        self.reader = self._make_reader()

    @property
    def device(self) -> torch.device:
        """Where the value model reads."""
        return next(self.model.parameters()).device

    def _make_reader(self) -> Follower | TextReader | None:
        """Make the object that runs the value model's backbone; `None` where the language model's states are used."""
        form = self.model.config.form
        if form == "policy" and self.model.captured is None:
            raise ValueError(
                "The value model reads the hidden states of the language model that it guides: load it with "
                "`ValueModel.from_pretrained(..., backbone=model)` with this language model."
            )
        if self.retokenizer is None:
            return None if form == "policy" else Follower(self.model.backbone)
        if form != "state":
            raise ValueError(
                f"A value model of the form {form!r} scores tokens of its own vocabulary and cannot be used with "
                "another: use one of the form 'state'."
            )
        return TextReader(self.model.backbone, self.retokenizer)

    def reset(self) -> None:
        """Free the memory of caches and captured hidden states."""
        if isinstance(self.reader, Follower):
            self.reader.reset()
        if self.model.captured is not None:
            self.model.captured.clear()

    def values(
        self,
        ids_NS: torch.Tensor,
        candidates_Nk: torch.Tensor,
        mask_of: Callable[[torch.Tensor], torch.Tensor],
        vocabulary: int,
    ) -> torch.Tensor:
        """
        Values of the sequences with each candidate token appended.

        Args:
            ids_NS (`torch.Tensor` of shape `(N, S)`): Token ids of the sequences so far, padded on the left.
            candidates_Nk (`torch.Tensor` of shape `(N, k)`): Candidate tokens.
            mask_of (`Callable`): From `ids_NS` to its attention mask; called only where the mask is needed.
            vocabulary (`int`): Number of tokens of the language model.

        Returns:
            `torch.Tensor` of shape `(N, k, H)`. Values of tokens that the value model does not have are undefined.

        Raises:
            `ValueError`: A sequence has a token that the value model does not have, or more of them than it has
                positions.
        """
        if isinstance(self.reader, TextReader):
            return self.model.value_of(self.reader.branch(ids_NS, mask_of(ids_NS), candidates_Nk))
        known_NS = ids_NS
        if vocabulary != self.vocabulary:
            known_NS = self._known_tokens(ids_NS, vocabulary)
            candidates_Nk = candidates_Nk.clamp(max=self.vocabulary - 1)
        if self.reader is None:
            assert self.model.captured is not None
            return self.model.action_values(self.model.captured.after(ids_NS), candidates_Nk)
        columns = ids_NS.shape[1] + (self.model.config.form == "state")
        if 0 < self.context < columns:
            self.check_length(columns - int((mask_of(ids_NS) == 0).sum(1).min()))
        known_NS, candidates_Nk = known_NS.to(self.device), candidates_Nk.to(self.device)

        def mask(_: torch.Tensor) -> torch.Tensor:
            return mask_of(ids_NS)  # which has the padding tokens

        if self.model.config.form == "action":
            return self.model.action_values(self.reader.read(known_NS, mask), candidates_Nk)
        return self.model.value_of(self.reader.branch(known_NS, candidates_Nk, mask))

    def _known_tokens(self, ids_NS: torch.Tensor, vocabulary: int) -> torch.Tensor:
        """
        The sequences, with the first token in place of a padding token that the value model does not have.

        That is padding on the left, or after a sequence that has ended. For vocabularies of another size the
        tokenizers must be known to match.
        """
        if not self.tokenizers_match:
            raise ValueError(
                f"The language model has {vocabulary} tokens and the value model {self.vocabulary}. If they have the "
                "same tokenizer, pass both (`tokenizer=`, `value_tokenizer=`) so that they can be compared; if not, "
                "add `retokenize=True`, which is slow."
            )
        if vocabulary < self.vocabulary:
            return ids_NS
        unknown_NS = ids_NS >= self.vocabulary
        text_NS = unknown_NS if self.pad is None else unknown_NS & (ids_NS != self.pad)
        if text_NS.any():
            raise ValueError(
                f"Token {int(ids_NS[text_NS][0])} is not in the vocabulary of the value model ({self.vocabulary} "
                "tokens)."
            )
        return ids_NS.masked_fill(unknown_NS, 0)

    def check_length(self, length: int) -> None:
        """Raise `ValueError` if the value model has no position for a text of this length; warn once beyond others."""
        if not 0 < self.context < length:
            return
        found = f"The {self.who} has a context of {self.context} tokens, and a text has {length}"
        if self.learned_positions:
            raise ValueError(
                f"{found}: it has no position for the last one. Shorten the prompt or `max_new_tokens`, or guide with "
                "a value model of a longer context."
            )
        logger.warning("%s: values beyond its context mean little.", found)
        self.context = 0  # said once


def value_vocabulary_mismatch(
    tokenizer: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase | ValueModel, name: str = ""
) -> str:
    """
    Why token ids mean different things to a language model and a value model; `""` if they mean the same.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): The language model's tokenizer.
        other ([`~transformers.PreTrainedTokenizerBase`] or [`ValueModel`]): The value model's tokenizer, or the value
            model, whose config has a digest of its vocabulary. One vocabulary may be the other with further tokens.
        name (`str`, *optional*, defaults to `""`): Name of the value model in the message.
    """
    who = f"value model {name!r}" if name else "value model"
    reason = ""
    if isinstance(other, PreTrainedTokenizerBase):
        reason = vocabulary_mismatch(tokenizer, other, who)
    elif other.config.vocabulary not in ("", vocabulary_digest(tokenizer, other.config.vocabulary_count)):
        trained_with = f" ({other.config.tokenizer_name})" if other.config.tokenizer_name else ""
        reason = (
            f"The {who} was trained with another vocabulary{trained_with} than the language model's, or with one that "
            "has more tokens: pass `value_tokenizer` to compare the two token by token."
        )
    return reason and (
        f"{reason} Use a value model that was trained with the language model's tokenizer, or let it read the text in "
        "its own tokens, which is slow: `retokenize=True` with `tokenizer` and `value_tokenizer`."
    )
