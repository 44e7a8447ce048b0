# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
A value model as a guide: its values of candidate tokens, and whether it shares the vocabulary.

Dimensions: N sequences, k candidate tokens, D hidden size, H heads of the value model.
"""

from collections.abc import Hashable, Sequence

import torch
from transformers import PreTrainedTokenizerBase

from trl_ext.decoding.cuda_graph import graph_key, weights_key
from trl_ext.decoding.guide import GuideContext
from trl_ext.decoding.slot_tree import SlotTree, slot_bytes, slot_unsupported_reason
from trl_ext.decoding.static_tree import StaticTree, static_unsupported_reason
from trl_ext.guides.backbone_reader import BackboneReader
from trl_ext.guides.base_guide import BaseGuide
from trl_ext.guides.vocabulary import GuideVocabulary
from trl_ext.models.backbone_and_head import BackboneAndHead
from trl_ext.models.tokenizers import vocabulary_mismatch
from trl_ext.vocabulary import vocabulary_digest

from ..value_model.model import ValueModel


class ValueGuide(BaseGuide):
    """
    A value model that guides decoding.

    Each step is one forward pass over the candidates, with a KV cache (see [`~trl_ext.decoding.token_tree.Tree`]);
    over the last token only, if the value model has the form `"action"`; and none, if it has the form `"policy"`.

    Args:
        model ([`ValueModel`]): The value model.
        name (`str`, *optional*, defaults to `""`): Its name in messages.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`], *optional*): The language model's tokenizer.
        value_tokenizer ([`~transformers.PreTrainedTokenizerBase`], *optional*): The value model's tokenizer. By
            default the digest of the vocabulary in the value model's config is compared with `tokenizer`.
        retokenize (`bool`, *optional*, defaults to `False`): Whether the value model may have another vocabulary, and
            then reads the text in its own tokens.

    Attributes:
        reader ([`~trl_ext.guides.backbone_reader.BackboneReader`] or `None`): Runs the backbone; `None` where the
            language model's hidden states are used.

    Raises:
        `ValueError`: The vocabularies differ, or the value model was loaded without the language model that it needs.
    """

    def __init__(
        self,
        model: ValueModel,
        name: str = "",
        *,
        tokenizer: PreTrainedTokenizerBase | None = None,
        value_tokenizer: PreTrainedTokenizerBase | None = None,
        retokenize: bool = False,
    ) -> None:
        self.model, self.config = model, model.config
        self.heads = model.head_names
        self.who = f"value model {name!r}" if name else "value model"
        differs = "" if tokenizer is None else value_vocabulary_mismatch(tokenizer, value_tokenizer or model, name)
        self._vocabulary = GuideVocabulary(
            model.config.get_text_config().vocab_size,
            self.who,
            tokenizer=tokenizer,
            own_tokenizer=value_tokenizer,
            compared=tokenizer is not None,
            mismatch=differs,
            retokenize=retokenize,
            argument="value_tokenizer",
        )
        self.vocabulary = 0 if self._vocabulary.retokenizer else self._vocabulary.size
        self.reader = self._make_reader()
        self.context_length = 0 if self.reader is None else self.reader.context_length
        self.learned_positions = self.reader is not None and self.reader.learned_positions

    @property
    def reads_candidates(self) -> bool:  # type: ignore[override]
        """Whether each candidate is a token to read: so it is for the form `"state"`."""
        return self.model.config.form == "state"

    @property
    def own_prompts(self) -> bool:  # type: ignore[override]
        """Whether it was trained on prompts of its own."""
        return bool(self.model.config.value_prompt)

    @property
    def device(self) -> torch.device:
        """Where the value model reads."""
        return next(self.model.parameters()).device

    @property
    def calls(self) -> int:
        """Forward passes of the value model so far."""
        return 0 if self.reader is None else self.reader.calls

    @property
    def tokens(self) -> int:
        """Tokens in these forward passes, padding included."""
        return 0 if self.reader is None else self.reader.tokens

    @property
    def about(self) -> dict[str, str]:
        """The rewards that each head was trained on."""
        known = self.model.reward_statistics
        return {head: "rewards of {:.3g} ± {:.3g} in training".format(*known[head]) for head in known}

    def _make_reader(self) -> BackboneReader | None:
        form = self.model.config.form
        if form == "policy" and self.model.captured is None:
            raise ValueError(
                "The value model reads the hidden states of the language model that it guides: load it with "
                "`ValueModel.from_pretrained(..., backbone=model)` with this language model."
            )
        if self._vocabulary.retokenizer is not None and form != "state":
            raise ValueError(
                f"A value model of the form {form!r} scores tokens of its own vocabulary and cannot be used with "
                "another: use one of the form 'state'."
            )
        return None if form == "policy" else BackboneReader(self.model.backbone, self._vocabulary)

    def blocks_unsupported_reason(self) -> str:
        """Why it cannot score blocks; `""` if it can."""
        if self.reader is None:
            return "it reads the language model's hidden states, which blocks no longer have; use the form 'state'"
        if self.own_prompts:
            return "it reads a prompt of its own"
        return ""

    def reset(self) -> None:
        """Free the memory of caches and captured hidden states."""
        if self.reader is not None:
            self.reader.reset()
        if self.model.captured is not None:
            self.model.captured.clear()

    def score(self, context: GuideContext, candidates_Nk: torch.Tensor) -> torch.Tensor:
        """
        Values of the sequences with each candidate token appended, (N, k, H).

        Raises:
            `ValueError`: A sequence has a token that the value model does not have, or more of them than it has
                positions.
        """
        if self.reader is not None and self.model.config.form == "state":
            return self.model.value_of(self.reader.branch(context, candidates_Nk))
        if self.reader is not None:
            hidden_ND = self.reader.read(context)
        else:
            self._vocabulary.known(context.ids_NS, context.vocabulary)
            assert self.model.captured is not None
            hidden_ND = self.model.captured.after((context.batch or context).ids_NS)
            hidden_ND = hidden_ND if context.rows_N is None else hidden_ND[context.rows_N]
        candidates_Nk = self._vocabulary.within(candidates_Nk, context.vocabulary)
        return self.model.action_values(hidden_ND, candidates_Nk)

    # -------------------------------------------------- CUDA-graph decoding: see `trl_ext/decoding/static_generate.py`

    def static_unsupported_reason(self, llm: BackboneAndHead) -> str:
        """Why CUDA-graph decoding cannot use it with this language model; `""` if it can."""
        if self._vocabulary.retokenizer is not None:
            return "a value model reads the text in tokens of its own"
        if self.device != llm.device:
            return "a value model is on another device"
        if self.vocabulary != llm.vocabulary:
            return "a value model has more or fewer tokens than the language model"
        reason = static_unsupported_reason(self.model.backbone) if self.reader is not None else ""
        return f"a value model cannot be read there: {reason}" if reason else ""

    def static_key(self) -> Hashable:
        """Key of the recorded graph: its model and the places of its weights."""
        model = self.model
        heads = [weights_key(part) for name, part in model.named_children() if name != "backbone"]
        return id(model), model.statistic, graph_key(model.backbone), *heads

    def static_columns(self, top_k: int) -> int:
        """Columns of the static KV cache for the candidates, which only the form `"state"` reads."""
        return top_k if self.model.config.form == "state" else 0

    def static_scorer(self, rows: int, columns: int) -> "StaticValues":
        """Values for CUDA-graph decoding of `rows` sequences with a static KV cache of `columns` columns."""
        return StaticValues(self.model, self.device, rows, columns)

    # ------------------------------------------------ engines that batch continuously: see `trl_ext/serving/vllm`

    def slot_bytes(self, columns: int) -> int:
        """Bytes of the KV cache for one text of so many columns; 0 if the language model's states are used."""
        self._check_slots()
        return 0 if self.reader is None else slot_bytes(self.model.backbone, columns)

    def slot_scorer(self, slots: int, columns: int) -> "SlotValues":
        """Values for texts in `slots` slots of `columns` columns. Raises `ValueError` if it cannot read them."""
        self._check_slots()
        return SlotValues(self.model, slots, columns)

    def _check_slots(self) -> None:
        reason = "" if self.reader is None else slot_unsupported_reason(self.model.backbone)
        if self._vocabulary.retokenizer is not None:
            reason = "it reads the text in tokens of its own"
        if self.own_prompts:
            reason = "it reads a prompt of its own, which requests do not have"
        if reason:
            raise ValueError(f"The {self.who} cannot read many texts at once on one KV cache: {reason}.")


class StaticValues:
    """
    Values for CUDA-graph decoding; a [`~trl_ext.guides.base_guide.StaticScorer`].

    In each step, a value model of the form `"state"` reads the new tokens and the candidates after them in one forward
    pass, one of the form `"action"` reads the new tokens only, and one of the form `"policy"` reads nothing.

    Args:
        model ([`ValueModel`]): The value model.
        device (`torch.device`): Its device.
        rows (`int`), columns (`int`): Size of the static KV cache.
    """

    def __init__(self, model: ValueModel, device: torch.device, rows: int, columns: int) -> None:
        self.model, self.device = model, device
        own = model.config.form != "policy"
        self.trees = [StaticTree(model.backbone, rows, columns)] if own else []

    def score(self, candidates_Nk: torch.Tensor, after_NT: torch.Tensor, hidden_ND: torch.Tensor) -> torch.Tensor:
        """See [`~trl_ext.guides.base_guide.StaticScorer.score`]."""
        if not self.trees:
            return self.model.action_values(hidden_ND, candidates_Nk)
        [tree] = self.trees
        if self.model.config.form == "action":
            return self.model.action_values(tree.append(after_NT), candidates_Nk)
        return self.model.value_of(tree.branch(candidates_Nk, after_NT=after_NT))


class SlotValues:
    """
    Values for texts in slots; a [`~trl_ext.guides.base_guide.SlotScorer`].

    Args:
        model ([`ValueModel`]): The value model.
        slots (`int`), columns (`int`): Size of its KV cache, for all forms but `"policy"`.
    """

    def __init__(self, model: ValueModel, slots: int, columns: int) -> None:
        self.model = model
        self.hidden_size = model.head.in_features if model.config.form == "policy" else 0
        self.trees = [] if self.hidden_size else [SlotTree(model.backbone, slots, columns)]

    def score(
        self,
        candidates_Nk: torch.Tensor,
        slots: Sequence[int],
        next_N: torch.Tensor,
        hidden_ND: torch.Tensor | None,
    ) -> torch.Tensor:
        """See [`~trl_ext.guides.base_guide.SlotScorer.score`]."""
        if hidden_ND is not None and not self.trees:
            return self.model.action_values(hidden_ND, candidates_Nk)
        [tree] = self.trees
        if self.model.config.form == "action":
            return self.model.action_values(tree.step(slots, next_N)[:, 0], candidates_Nk)
        return self.model.value_of(tree.step(slots, next_N, candidates_Nk))


def value_vocabulary_mismatch(
    tokenizer: PreTrainedTokenizerBase,
    other: PreTrainedTokenizerBase | ValueModel,
    name: str = "",
    *,
    may_retokenize: bool = True,
) -> str:
    """
    Why token ids mean different things to a language model and a value model; `""` if they mean the same.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): The language model's tokenizer.
        other ([`~transformers.PreTrainedTokenizerBase`] or [`ValueModel`]): The value model's tokenizer, or the value
            model, whose config has a digest of its vocabulary. One vocabulary may be the other with further tokens.
        name (`str`, *optional*, defaults to `""`): Name of the value model in the message.
        may_retokenize (`bool`, *optional*, defaults to `True`): Whether the value model could read the text in its own
            tokens, which the message advises then.
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
    slow = (
        ", or let it read the text in its own tokens, which is slow: `retokenize=True` with `tokenizer` and "
        "`value_tokenizer`"
    )
    advice = "Use a value model that was trained with the language model's tokenizer"
    return reason and f"{reason} {advice}{slow if may_retokenize else ''}."
