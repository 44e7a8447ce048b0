# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
Decoding: a frozen model's logits, moved by what value models think of the likeliest next tokens.

N sequences, P tokens of a prompt, S columns of the sequences so far, k candidates for the next token, H heads, V
vocabulary.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from transformers import LogitsProcessor, PreTrainedTokenizerBase

from trl_ext.decoding.static_loop import graph_key, weights_key
from trl_ext.decoding.static_support import static_unsupported_reason
from trl_ext.decoding.static_tree import StaticTree
from trl_ext.models.backbone_and_head import BackboneAndHead
from trl_ext.models.tokenizers import vocabulary_digest, vocabulary_mismatch
from trl_ext.validation import check_value

from ..head_weights import head_weights
from ..value_model.model import ValueModel
from .guide import Guide
from .retokenize import Retokenizer
from .tree_follower import PromptMask


Beta = float | Mapping[str, float] | Sequence[float | Mapping[str, float]]


class ValueAugmentedLogitsProcessor(LogitsProcessor):
    r"""
    Moves the logits of the `top_k` likeliest tokens by what value models expect after them.

    Reference code: with the candidates K, the `top_k` likeliest tokens, and v_a the value of the text with a at its
    end, the logit of each a in K is raised by beta (v_a - mean over K of v); other tokens keep theirs. With several
    heads the sum over them is added, K being taken once. Goes into `generate(..., logits_processor=[...])` of any
    causal language model; temperature, top-p and the like come after it.

    One forward a token, over the k candidates on the value model's own cache (see
    [`~trl_ext.decoding.token_tree.Tree`]); over the last token alone where the value model has the form `"action"`,
    and none with `"policy"`. One processor may serve one `generate` after another: it notices what is new.

    Args:
        value_model ([`ValueModel`] or `dict[str, ValueModel]`):
            Value models. In a dictionary a model of one head is a head of the model's name; the heads of others are
            called `"name/head"`, or `"head"` where there is only one of that name. Without it, heads have their names.
        beta (`float`, `dict[str, float]` or a sequence of those, *optional*, defaults to `3.0`):
            Weight of a head's values (3 is the reference code's). A number where there is one head, else a weight a
            head (heads left out weigh 0). A list has one for each sequence of the batch, or for each prompt. Negative
            weights steer away. May be assigned between calls. A beam search adds up scores that are not normalised,
            unless `renormalize_logits=True` is passed to `generate`.
        top_k (`int`, *optional*, defaults to `20`):
            Candidates (20 is the reference code's). With the forms `"action"` and `"policy"` more of them, up to the
            whole vocabulary, cost next to nothing.
        pad_token_id (`int`, *optional*):
            What rows are padded with on the left. By default the `tokenizer`'s, or the value model's.
        attention_mask (`torch.Tensor` of shape `(N, P)`, *optional*):
            Says what is padding in the prompts that come first. Without it, or with other prompts, it is the run of
            `pad_token_id` that rows begin with; where that token also is the start or end of a text, a run that all
            rows begin with is text.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`], *optional*):
            The language model's, to be compared with those of the value models.
        value_tokenizer ([`~transformers.PreTrainedTokenizerBase`] or `dict` of those, *optional*):
            The value models'. By default what they remember of theirs is compared.
        retokenize (`bool`, *optional*, defaults to `False`):
            Whether value models of another vocabulary read the text in their own tokens, each candidate from the first
            token on: some fifty times slower. Needs `tokenizer` and `value_tokenizer`.

    Attributes:
        heads (`tuple[str, ...]`): Names that `beta` may have.
        value_calls (`int`), value_tokens (`int`): Forwards of value models so far, and tokens fed in them.

    Raises:
        `ValueError`: `top_k` is no positive whole number, `beta` is not finite or names a head that does not exist, a
            vocabulary differs, or a value model on the language model's states was loaded without it; when called,
            `top_k` is larger than the vocabulary, `beta` does not fit the batch, or a row has no tokens.
    """

    def __init__(
        self,
        value_model: ValueModel | Mapping[str, ValueModel],
        beta: Beta = 3.0,
        top_k: int = 20,
        *,
        pad_token_id: int | None = None,
        attention_mask: torch.Tensor | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        value_tokenizer: PreTrainedTokenizerBase | Mapping[str, PreTrainedTokenizerBase] | None = None,
        retokenize: bool = False,
    ) -> None:
        top_k = check_value("top_k", top_k, int)
        if top_k < 1:
            raise ValueError(f"`top_k` must be at least 1, got {top_k}: without candidates there is nothing to guide.")
        models = dict(value_model) if isinstance(value_model, Mapping) else {"": value_model}
        if not models:
            raise ValueError("`value_model` is an empty dictionary.")
        others = value_tokenizer if isinstance(value_tokenizer, Mapping) else dict.fromkeys(models, value_tokenizer)
        if retokenize and (tokenizer is None or None in map(others.get, models)):
            raise ValueError("`retokenize` needs `tokenizer` and a `value_tokenizer` for each value model.")
        self.guides: list[Guide] = []
        for name, model in models.items():
            other, fault = others.get(name), ""
            if tokenizer is not None:
                fault = _vocabulary_mismatch(tokenizer, other or model, name)
            if fault and not retokenize:
                raise ValueError(fault)
            translator = Retokenizer(tokenizer, other) if fault and tokenizer and other else None
            self.guides.append(Guide(model, name, sum(len(g.heads) for g in self.guides), translator))
            self.guides[-1].checked = tokenizer is not None
        self.heads = tuple(head for guide in self.guides for head in guide.heads)
        self.top_k = top_k
        self.beta = beta
        config = tokenizer or next(iter(models.values())).config.get_text_config()
        ends = [config.bos_token_id, *(e if isinstance(e := config.eos_token_id, list) else [e])]
        trained = None if tokenizer else next(iter(models.values())).config.pad_token_id
        # Many models' configs name none; `generate` then pads with the end, and so do most tokenizers.
        known = (pad_token_id, trained, config.pad_token_id, ends[1] if attention_mask is None else None)
        pad = next((token for token in known if token is not None), None)
        self._mask = PromptMask(attention_mask, pad, also_text=pad in ends)

    @property
    def beta(self) -> Any:
        """The weights, as they were given; assign new ones rather than changing these."""
        return self._beta

    @beta.setter
    def beta(self, value: Any) -> None:
        self._weights = head_weights(value, self.heads)
        self._beta = value

    @property
    def attention_mask(self) -> torch.Tensor | None:
        """The mask of the prompts that come first."""
        return self._mask.given

    @attention_mask.setter
    def attention_mask(self, value: torch.Tensor | None) -> None:
        self._mask = PromptMask(value, self._mask.pad_token_id, also_text=self._mask.also_text)
        self.reset()

    @property
    def value_calls(self) -> int:
        """Forwards of value models so far."""
        return sum(guide.reader.calls for guide in self.guides if guide.reader)

    @property
    def value_tokens(self) -> int:
        """Tokens fed to value models so far, padding included."""
        return sum(guide.reader.tokens for guide in self.guides if guide.reader)

    def reset(self) -> None:
        """Give back the memory of the value models' caches."""
        for guide in self.guides:
            guide.reset()

    @torch.no_grad()
    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        n, vocabulary = scores.shape
        self._check_top_k(vocabulary)
        weights_NH = self._weights.tensor(n, scores.device)
        if not self._weights.any():
            return scores
        weighing = [guide for guide in self.guides if self._weights.any(guide.columns)]
        return self.moved(
            scores, weights_NH, weighing, lambda guide, ids: guide.values(input_ids, ids, self._mask, vocabulary)
        )

    def moved(
        self,
        scores_NV: torch.Tensor,
        weights_NH: torch.Tensor,
        guides: Sequence["Guide"],
        values: Callable[["Guide", torch.Tensor], torch.Tensor],
    ) -> Any:
        """
        The logits with the weighted and centred values of the candidates added.

        Args:
            scores_NV (`torch.Tensor` of shape `(N, V)`): The language model's logits.
            weights_NH (`torch.Tensor` of shape `(N, H)`): Weight of each head.
            guides (`Sequence`): The value models that are asked.
            values (`Callable`): From one of those and candidates (N, k) to their values (N, k, heads).
        """
        n, vocabulary = scores_NV.shape
        if self.top_k < vocabulary:
            top_Nk, candidates_Nk = scores_NV.topk(self.top_k)
        else:  # all of them, and none before another
            top_Nk, candidates_Nk = scores_NV, torch.arange(vocabulary, device=scores_NV.device).expand(n, -1)
        possible_Nk = top_Nk > -torch.inf  # another processor may have left fewer than k
        added_Nk = torch.zeros_like(top_Nk, dtype=torch.float32)
        for guide in guides:
            centred_NkH = _centred(values(guide, candidates_Nk).to(scores_NV.device), possible_Nk)
            added_Nk += (centred_NkH * weights_NH[:, None, guide.columns]).sum(-1)
        return scores_NV.scatter_add(1, candidates_Nk, added_Nk.to(scores_NV.dtype))

    def weights(self, n: int, device: torch.device) -> torch.Tensor:
        """Weight of each head in each of n rows, (N, H)."""
        return self._weights.tensor(n, device)

    def _check_top_k(self, vocabulary: int) -> None:
        if self.top_k > vocabulary:
            raise ValueError(f"`top_k` is {self.top_k}, but the vocabulary has only {vocabulary} tokens.")

    # ------------------------------------------------- in a loop of fixed shapes: see trl_ext.decoding.static_generate

    def static_unsupported_reason(self, llm: BackboneAndHead) -> str:
        """Why the static loop cannot guide this language model; empty if it can."""
        self._check_top_k(llm.vocabulary)
        if type(self) is not ValueAugmentedLogitsProcessor:
            return f"{type(self).__name__} may do something else with the logits"
        for guide in self.guides:
            if guide.retokenizer is not None:
                return "a value model reads the text in tokens of its own"
            if guide.device != llm.device:
                return "a value model is on another device"
            if guide.vocabulary != llm.vocabulary:
                return "a value model has more or fewer tokens than the language model"
            fault = static_unsupported_reason(guide.model.backbone) if guide.model.config.form != "policy" else ""
            if fault:
                return f"a value model cannot be read there: {fault}"
        return ""

    def static_key(self) -> Any:
        """What a guide of the loop depends on beside prompts and weights."""
        parts = []
        for guide in self.guides:
            model = guide.model
            heads = [weights_key(part) for name, part in model.named_children() if name != "backbone"]
            parts.append((id(model), guide.columns.start, graph_key(model.backbone), *heads))
        return type(self), self.top_k, *parts

    def static_columns(self) -> int:
        """Room for the candidates of a token."""
        return self.top_k if any(g.model.config.form == "state" for g in self.guides) else 0

    def static_guide(self, rows: int, columns: int) -> Any:
        """The guide of such a loop."""

        return StaticValues(self, rows, columns)


def _centred(values_NkH: torch.Tensor, possible_Nk: torch.Tensor) -> torch.Tensor:
    """Values less their mean over the candidates that are possible; 0 for the others."""
    possible = possible_Nk[..., None]
    mean = values_NkH.masked_fill(~possible, 0.0).sum(1, keepdim=True) / possible.sum(1, keepdim=True).clamp(min=1)
    return (values_NkH - mean).masked_fill(~possible, 0.0)


# ------------------------------------------------------------------------------------------------------ vocabularies


def _vocabulary_mismatch(tokenizer: PreTrainedTokenizerBase, other: Any, name: str = "") -> str:
    who = f"value model {name!r}" if name else "value model"
    fault = ""
    if isinstance(other, PreTrainedTokenizerBase):
        fault = vocabulary_mismatch(tokenizer, other, who)
    elif other.config.vocabulary not in ("", vocabulary_digest(tokenizer)):
        whose = f" ({other.config.tokenizer_name})" if other.config.tokenizer_name else ""
        fault = f"The {who} was trained with another vocabulary{whose} than the language model's."
    return fault and (
        f"{fault} Use a value model that was trained with the language model's tokenizer, or let it read the text in "
        "its own tokens, which is slow: `retokenize=True` with `tokenizer` and `value_tokenizer`."
    )


def check_vocabulary(tokenizer: PreTrainedTokenizerBase, other: "PreTrainedTokenizerBase | ValueModel") -> None:
    """
    Check that token ids mean the same to a language model and to a value model.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): The language model's.
        other ([`~transformers.PreTrainedTokenizerBase`] or [`ValueModel`]): The value model's tokenizer, or the value
            model, which remembers a digest of it. One tokenizer may have tokens more than the other.

    Raises:
        `ValueError`: They do not; says what to do.
    """
    fault = _vocabulary_mismatch(tokenizer, other)
    if fault:
        raise ValueError(fault)


class StaticValues:
    """
    Value models in rooms of fixed size; a [`~trl_ext.decoding.static_generate.StaticGuide`].

    Each reads the last token and the candidates behind it in one forward; the form `"action"` the last token alone,
    and `"policy"` nothing.

    Args:
        processor ([`ValueAugmentedLogitsProcessor`]): Whose value models and `top_k` these are.
        rows (`int`), columns (`int`): Sizes of the rooms.
    """

    def __init__(self, processor: ValueAugmentedLogitsProcessor, rows: int, columns: int) -> None:
        self.processor = processor
        self._trees = {
            guide: StaticTree(guide.model.backbone, rows, columns)
            for guide in processor.guides
            if guide.model.config.form != "policy"
        }
        self.trees = list(self._trees.values())
        device = processor.guides[0].device
        self.weights_NH = torch.zeros(rows, len(processor.heads), device=device)
        self.state = [self.weights_NH, *(tree.length_1 for tree in self.trees)]

    def start(self, processor: ValueAugmentedLogitsProcessor, ids_NP: torch.Tensor, mask_NP: torch.Tensor) -> None:
        """Read prompts, and take the weights of this call."""
        for tree in self.trees:
            tree.start(ids_NP.to(tree.device), mask_NP.to(tree.device))
        weights = processor.weights(len(ids_NP), self.weights_NH.device)
        self.weights_NH.copy_(weights.expand_as(self.weights_NH))

    def __call__(self, scores_NV: torch.Tensor, token_N1: torch.Tensor, hidden_ND: torch.Tensor) -> torch.Tensor:
        """Scores (N, V) with the values of what may follow the token."""

        def values(guide: Guide, candidates_Nk: torch.Tensor) -> torch.Tensor:
            if guide.model.config.form == "policy":
                return guide.model.action_values(hidden_ND, candidates_Nk)
            tree = self._trees[guide]
            if guide.model.config.form == "action":
                return guide.model.action_values(tree.append(token_N1), candidates_Nk)
            return guide.model.value_of(tree.branch(candidates_Nk, after_N1=token_N1))

        return self.processor.moved(scores_NV, self.weights_NH, self.processor.guides, values)
