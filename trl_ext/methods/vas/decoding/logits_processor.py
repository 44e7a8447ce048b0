# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
Guided decoding: adds the values of the likeliest next tokens to a frozen language model's logits.

Dimensions: N sequences, P tokens of a prompt, k candidate tokens, H heads, V vocabulary, D hidden size.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from transformers import LogitsProcessor, PreTrainedTokenizerBase

from trl_ext.decoding.cuda_graph import graph_key, weights_key
from trl_ext.decoding.static_tree import StaticTree, static_unsupported_reason
from trl_ext.inference.policy import GuideWeights, Policy
from trl_ext.models.backbone_and_head import BackboneAndHead
from trl_ext.validation import check_value

from ..head_weights import head_weights
from ..value_model.model import ValueModel
from .guide import Guide
from .tree_follower import PromptMask


Beta = float | Mapping[str, float] | Sequence[float | Mapping[str, float]]


class ValueAugmentedLogitsProcessor(LogitsProcessor):
    r"""
    Adds weighted values to the logits of the `top_k` likeliest tokens.

    Reference code: let the candidates K be the `top_k` likeliest tokens, and v_a the value of the text with the token
    a appended. The logit of each a in K is raised by beta (v_a - mean of v over K); other tokens keep theirs. With
    several heads the sum over the heads is added, for the same candidates. Pass it to `generate(...,
    logits_processor=[...])` of any causal language model; temperature, top-p and the like are applied after it.

    Each step is one forward pass of each value model: over the k candidates, with a KV cache (see
    [`~trl_ext.decoding.token_tree.Tree`]); over the last token only, if the value model has the form `"action"`; and
    none, if it has the form `"policy"`. One processor may be used for several calls of `generate`, one after another:
    it detects new prompts.

    Args:
        value_model ([`ValueModel`] or `dict[str, ValueModel]`):
            Value models. In a dictionary, the head of a model with one head has the model's name; the heads of others
            are called `"name/head"`, or `"head"` where only one head has this name. The heads of a single value model
            have their own names.
        beta (`float`, `dict[str, float]` or a sequence of those, *optional*, defaults to `3.0`):
            Weight of a head's values (3 is the reference code's). A number if there is one head, else a weight for
            each head (0 for omitted ones). A sequence has one entry per sequence of the batch, or one per prompt.
            Negative weights guide away from high values. May be assigned between calls. A beam search adds scores
            that are not normalised, unless `renormalize_logits=True` is passed to `generate`.
        top_k (`int`, *optional*, defaults to `20`):
            Number of candidates (20 is the reference code's). With the forms `"action"` and `"policy"`, more of them,
            up to the complete vocabulary, cost almost nothing.
        pad_token_id (`int`, *optional*):
            Token id of the padding on the left. By default the `tokenizer`'s, or the value model's.
        attention_mask (`torch.Tensor` of shape `(N, P)`, *optional*):
            Attention mask of the first prompts, which may have padding between tokens. Without it, or for other
            prompts, padding is the run of `pad_token_id` that rows begin with. If that token is also the start or the
            end of a text, a run that all rows begin with is text. In a batch of conversations, assign the mask of
            each turn.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`], *optional*):
            The language model's tokenizer, to be compared with those of the value models.
        value_tokenizer ([`~transformers.PreTrainedTokenizerBase`] or `dict` of those, *optional*):
            The value models' tokenizers. By default the digest of the vocabulary in their configs is compared.
        retokenize (`bool`, *optional*, defaults to `False`):
            Whether value models with another vocabulary read the text in their own tokens, each candidate from the
            first token on: about fifty times slower. Needs `tokenizer` and `value_tokenizer`.

    Attributes:
        heads (`tuple[str, ...]`): Names that `beta` may have.
        value_calls (`int`), value_tokens (`int`): Forward passes of value models so far, and tokens in them.

    Raises:
        `ValueError`: `top_k` is not a positive integer, `beta` is not finite or names a head that does not exist, a
            vocabulary differs, or a value model of the form `"policy"` was loaded without the language model. When
            called: `top_k` is larger than the vocabulary, `beta` does not fit the batch, a row has no tokens, padding
            of unknown place, or more tokens than a value model with learned positions.
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
        self.top_k = check_value("top_k", top_k, int)
        if self.top_k < 1:
            raise ValueError(f"`top_k` must be at least 1, got {top_k}: without candidates there is nothing to guide.")
        models = dict(value_model) if isinstance(value_model, Mapping) else {"": value_model}
        if not models:
            raise ValueError("`value_model` is an empty dictionary.")
        value_tokenizers = (
            value_tokenizer if isinstance(value_tokenizer, Mapping) else dict.fromkeys(models, value_tokenizer)
        )
        if retokenize and (tokenizer is None or None in map(value_tokenizers.get, models)):
            raise ValueError("`retokenize` needs `tokenizer` and a `value_tokenizer` for each value model.")
        self.guides: list[Guide] = []
        self.heads: tuple[str, ...] = ()
        for name, model in models.items():
            guide = Guide(
                model,
                name,
                len(self.heads),
                tokenizer=tokenizer,
                value_tokenizer=value_tokenizers.get(name),
                retokenize=retokenize,
            )
            self.guides.append(guide)
            self.heads += tuple(guide.heads)
        self.beta = beta
        self._mask = _prompt_mask(attention_mask, pad_token_id, tokenizer, self.guides[0].model.config)

    @property
    def beta(self) -> Any:
        """The weights as they were given. To change them, assign new ones."""
        return self._beta

    @beta.setter
    def beta(self, value: Any) -> None:
        self._weights = head_weights(value, self.heads)
        self._beta = value

    def guide_weights(self, change: Callable[[dict[str, float]], Policy]) -> GuideWeights:
        """The weights of the heads, for a policy; `change` as for [`~trl_ext.inference.policy.GuideWeights`]."""
        about: dict[str, str] = {}
        for guide in self.guides:
            rewards = guide.model.reward_statistics
            for full, head in zip(guide.heads, guide.model.head_names, strict=True):
                if head in rewards:
                    about[full] = "rewards of {:.3g} ± {:.3g} in training".format(*rewards[head])
        return GuideWeights(dict(zip(self.heads, self._weights.rows[0], strict=True)), change, about)

    @property
    def attention_mask(self) -> torch.Tensor | None:
        """The attention mask of the first prompts."""
        return self._mask.given

    @attention_mask.setter
    def attention_mask(self, value: torch.Tensor | None) -> None:
        self._mask = PromptMask(value, self._mask.pad_token_id, also_text=self._mask.also_text)
        self.reset()

    @property
    def value_calls(self) -> int:
        """Forward passes of value models so far."""
        return sum(guide.reader.calls for guide in self.guides if guide.reader)

    @property
    def value_tokens(self) -> int:
        """Tokens in the forward passes of value models so far, padding included."""
        return sum(guide.reader.tokens for guide in self.guides if guide.reader)

    def reset(self) -> None:
        """Free the memory of the value models' KV caches."""
        for guide in self.guides:
            guide.reset()

    @torch.no_grad()
    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        n, vocabulary = scores.shape
        self._check_top_k(vocabulary)
        weights_NH = self.weights(n, scores.device)
        if not self._weights.any():
            return scores
        self._mask.check(input_ids)

        def values(guide: Guide, candidates_Nk: torch.Tensor) -> torch.Tensor:
            return guide.values(input_ids, candidates_Nk, self._mask, vocabulary)

        weighted = [guide for guide in self.guides if self._weights.any(guide.columns)]
        return self.guided_logits(scores, weights_NH, weighted, values)

    def guided_logits(
        self,
        scores_NV: torch.Tensor,
        weights_NH: torch.Tensor,
        guides: Sequence[Guide],
        values: Callable[[Guide, torch.Tensor], torch.Tensor],
    ) -> Any:
        """
        The logits plus the weighted and centred values of the candidates.

        Args:
            scores_NV (`torch.Tensor` of shape `(N, V)`): The language model's logits.
            weights_NH (`torch.Tensor` of shape `(N, H)`): Weight of each head.
            guides (`Sequence[Guide]`): The value models to use.
            values (`Callable`): From a guide and candidates (N, k) to their values (N, k, heads of the guide).

        Returns:
            `torch.Tensor` of shape `(N, V)`.
        """
        n, vocabulary = scores_NV.shape
        if self.top_k < vocabulary:
            top_Nk, candidates_Nk = scores_NV.topk(self.top_k)
        else:  # all tokens, which need no sorting
            top_Nk, candidates_Nk = scores_NV, torch.arange(vocabulary, device=scores_NV.device).expand(n, -1)
        possible_Nk = top_Nk > -torch.inf  # another processor may have left fewer than k
        added_Nk = torch.zeros_like(top_Nk, dtype=torch.float32)
        for guide in guides:
            known_Nk = possible_Nk
            if guide.retokenizer is None and guide.vocabulary < vocabulary:
                known_Nk = possible_Nk & (candidates_Nk < guide.vocabulary)
            centred_NkH = _centred(values(guide, candidates_Nk).to(scores_NV.device), known_Nk)
            added_Nk += (centred_NkH * weights_NH[:, None, guide.columns]).sum(-1)
        return scores_NV.scatter_add(1, candidates_Nk, added_Nk.to(scores_NV.dtype))

    def weights(self, n: int, device: torch.device) -> torch.Tensor:
        """Weight of each head in each of N rows, (N, H)."""
        return self._weights.tensor(n, device)

    def _check_top_k(self, vocabulary: int) -> None:
        if self.top_k > vocabulary:
            raise ValueError(f"`top_k` is {self.top_k}, but the vocabulary has only {vocabulary} tokens.")

    # -------------------------------------------------- CUDA-graph decoding: see `trl_ext/decoding/static_generate.py`

    def static_unsupported_reason(self, llm: BackboneAndHead) -> str:
        """Why CUDA-graph decoding cannot guide this language model; `""` if it can."""
        self._check_top_k(llm.vocabulary)
        if type(self) is not ValueAugmentedLogitsProcessor:
            return f"{type(self).__name__} may change the logits in another way"
        for guide in self.guides:
            if guide.retokenizer is not None:
                return "a value model reads the text in tokens of its own"
            if guide.device != llm.device:
                return "a value model is on another device"
            if guide.vocabulary != llm.vocabulary:
                return "a value model has more or fewer tokens than the language model"
            reason = static_unsupported_reason(guide.model.backbone) if guide.model.config.form != "policy" else ""
            if reason:
                return f"a value model cannot be read there: {reason}"
        return ""

    def static_length_reason(self, longest: int) -> str:
        """Why CUDA-graph decoding cannot guide texts of up to so many columns; `""` if it can."""
        limits = [g.context for g in self.guides if g.context and g.reader is not None]
        return "texts may exceed the context of a value model" if longest > min(limits, default=longest) else ""

    def static_key(self) -> Any:
        """Key of the recorded graph: everything that it depends on, except prompts and `beta`."""
        parts = []
        for guide in self.guides:
            model = guide.model
            heads = [weights_key(part) for name, part in model.named_children() if name != "backbone"]
            parts.append((id(model), guide.columns.start, graph_key(model.backbone), *heads))
        return type(self), self.top_k, *parts

    def static_columns(self) -> int:
        """Columns of the static KV cache that the candidates of one step need."""
        return self.top_k if any(guide.model.config.form == "state" for guide in self.guides) else 0

    def static_guide(self, rows: int, columns: int) -> "StaticValues":
        """The guide for CUDA-graph decoding of `rows` sequences with a static KV cache of `columns` columns."""
        return StaticValues(self, rows, columns)


class StaticValues:
    """
    Values for CUDA-graph decoding; a [`~trl_ext.decoding.static_generate.StaticGuide`] with a static KV cache.

    In each step, a value model of the form `"state"` reads the last token and the candidates after it in one forward
    pass, one of the form `"action"` reads the last token only, and one of the form `"policy"` reads nothing.

    Args:
        processor ([`ValueAugmentedLogitsProcessor`]): Processor with the value models and `top_k`.
        rows (`int`), columns (`int`): Size of the static KV caches.
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
        """Read the prompts, and copy the weights of this call."""
        for tree in self.trees:
            tree.start(ids_NP.to(tree.device), mask_NP.to(tree.device))
        weights = processor.weights(len(ids_NP), self.weights_NH.device)
        self.weights_NH.copy_(weights.expand_as(self.weights_NH))

    def __call__(self, scores_NV: torch.Tensor, token_N1: torch.Tensor, hidden_ND: torch.Tensor) -> torch.Tensor:
        """
        Guided logits of the next step.

        Args:
            scores_NV (`torch.Tensor` of shape `(N, V)`): The language model's logits.
            token_N1 (`torch.Tensor` of shape `(N, 1)`): Last token of each sequence.
            hidden_ND (`torch.Tensor` of shape `(N, D)`): The language model's hidden states at it.

        Returns:
            `torch.Tensor` of shape `(N, V)`.
        """

        def values(guide: Guide, candidates_Nk: torch.Tensor) -> torch.Tensor:
            if guide.model.config.form == "policy":
                return guide.model.action_values(hidden_ND, candidates_Nk)
            tree = self._trees[guide]
            if guide.model.config.form == "action":
                return guide.model.action_values(tree.append(token_N1), candidates_Nk)
            return guide.model.value_of(tree.branch(candidates_Nk, after_N1=token_N1))

        return self.processor.guided_logits(scores_NV, self.weights_NH, self.processor.guides, values)


def _centred(values_NkH: torch.Tensor, possible_Nk: torch.Tensor) -> torch.Tensor:
    """Values minus their mean over the possible candidates; 0 for the others."""
    possible = possible_Nk[..., None]
    mean = values_NkH.masked_fill(~possible, 0.0).sum(1, keepdim=True) / possible.sum(1, keepdim=True).clamp(min=1)
    return (values_NkH - mean).masked_fill(~possible, 0.0)


def _prompt_mask(
    attention_mask: torch.Tensor | None,
    pad_token_id: int | None,
    tokenizer: PreTrainedTokenizerBase | None,
    value_config: Any,
) -> PromptMask:
    """How padding is recognised: the first pad token that is given or known, and whether texts may begin with it."""
    known = tokenizer or value_config.get_text_config()
    eos = known.eos_token_id if isinstance(known.eos_token_id, list) else [known.eos_token_id]
    candidates = [pad_token_id, None if tokenizer else value_config.pad_token_id, known.pad_token_id]
    if attention_mask is None:
        # Many configs have no pad token. `generate` then pads with the end of sequence, and so do most tokenizers.
        candidates += eos[:1]
    pad = next((token for token in candidates if token is not None), None)
    return PromptMask(attention_mask, pad, also_text=pad in [known.bos_token_id, *eos])
