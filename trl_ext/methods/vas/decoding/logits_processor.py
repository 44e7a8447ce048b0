# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Guided decoding by value models: their values are added to a frozen language model's logits."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from transformers import PreTrainedTokenizerBase

from trl_ext.guides.logits_processor import GuidedLogitsProcessor, Weights
from trl_ext.validation import check_value

from ..value_model.model import ValueModel
from .value_guide import ValueGuide


Beta = Weights


class ValueAugmentedLogitsProcessor(GuidedLogitsProcessor):
    r"""
    Adds weighted values to the logits of the `top_k` likeliest tokens.

    Reference code: let the candidates K be the `top_k` likeliest tokens, and v_a the value of the text with the token
    a appended. The logit of each a in K is raised by beta (v_a - mean of v over K); other tokens keep theirs. With
    several heads the sum over the heads is added, for the same candidates. Pass it to `generate(...,
    logits_processor=[...])` of any causal language model; temperature, top-p and the like are applied after it.

    It is a [`~trl_ext.guides.logits_processor.GuidedLogitsProcessor`] whose guides are value models. Each step is one
    forward pass of each value model: over the k candidates, with a KV cache (see
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
        guide_every, guide_when, end_token_ids (*optional*):
            Which tokens are guided, by default all, and which end a completion; as for
            [`~trl_ext.guides.logits_processor.GuidedLogitsProcessor`].
        value_prompts (`Sequence[Sequence[int]]`, *optional*):
            For each prompt of the batch what value models read in place of it, which were trained with a column
            `value_prompt`: token ids. Needs `attention_mask`, and serves one batch.

    Attributes:
        heads (`tuple[str, ...]`): Names that `beta` may have.
        value_guides (`list[ValueGuide]`): The value models as guides.
        value_calls (`int`), value_tokens (`int`): Forward passes of value models so far, and tokens in them.

    Raises:
        `ValueError`: `top_k` is not a positive integer, `beta` is not finite or names a head that does not exist, a
            vocabulary differs, or a value model of the form `"policy"` was loaded without the language model. When
            called: `top_k` is larger than the vocabulary, `beta` does not fit the batch, a row has no tokens, padding
            of unknown place, or more tokens than a value model with learned positions.
    """

    weights_field: ClassVar[str] = "beta"

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
        guide_every: int | str = 1,
        guide_when: Mapping[str, Any] | None = None,
        end_token_ids: Sequence[int] = (),
        value_prompts: Sequence[Sequence[int]] | None = None,
    ) -> None:
        if check_value("top_k", top_k, int) < 1:
            raise ValueError(f"`top_k` must be at least 1, got {top_k}: without candidates there is nothing to guide.")
        models = dict(value_model) if isinstance(value_model, Mapping) else {"": value_model}
        if not models:
            raise ValueError("`value_model` is an empty dictionary.")
        value_tokenizers = (
            value_tokenizer if isinstance(value_tokenizer, Mapping) else dict.fromkeys(models, value_tokenizer)
        )
        if retokenize and (tokenizer is None or None in map(value_tokenizers.get, models)):
            raise ValueError("`retokenize` needs `tokenizer` and a `value_tokenizer` for each value model.")
        guides = {
            name: ValueGuide(
                model,
                name,
                tokenizer=tokenizer,
                value_tokenizer=value_tokenizers.get(name),
                retokenize=retokenize,
            )
            for name, model in models.items()
        }
        self.value_guides = list(guides.values())
        super().__init__(
            guides,
            beta,
            top_k,
            pad_token_id=pad_token_id,
            attention_mask=attention_mask,
            tokenizer=tokenizer,
            guide_every=guide_every,
            guide_when=guide_when,
            end_token_ids=end_token_ids,
            guide_prompts=value_prompts,
        )

    @property
    def beta(self) -> Any:
        """The weights as they were given. To change them, assign new ones."""
        return self.weights

    @beta.setter
    def beta(self, value: Any) -> None:
        self.weights = value

    @property
    def value_calls(self) -> int:
        """Forward passes of value models so far."""
        return self.guide_calls

    @property
    def value_tokens(self) -> int:
        """Tokens in the forward passes of value models so far, padding included."""
        return self.guide_tokens
