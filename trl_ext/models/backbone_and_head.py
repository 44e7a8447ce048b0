# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""A language model taken apart: hidden states from its backbone, logits from its head."""

from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch

from .load import base_of, context_length, use_exact_4bit_on_cpu
from .modes import evaluation_mode


# Shape and vocabulary of the head of each model that has been looked at: doing so takes two forwards.
_LOOKED_AT: WeakKeyDictionary[Any, tuple[Any, int]] = WeakKeyDictionary()


class BackboneAndHead:
    """
    A causal language model as what gives hidden states and what makes logits of them: its backbone and its head.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]): The language model.

    Raises:
        `ValueError`: It does not give its hidden states, or its logits are not head(hidden state) in a known way.
    """

    def __init__(self, model: Any) -> None:
        if any(adapter.is_prompt_learning for adapter in getattr(model, "peft_config", {}).values()):
            raise ValueError("The adapter puts virtual tokens in front of every row; use LoRA, or merge it.")
        # One that the user loaded in 4 bits and not by `load_model`: on some CPUs bitsandbytes repacks its layers in
        # the first forward, fails for widths that its kernel does not have, and rounds otherwise than training did.
        use_exact_4bit_on_cpu(model)
        base: Any = base_of(model)
        name = type(base).__name__
        self.model, self.head, self.backbone = model, base.get_output_embeddings(), base.base_model
        if self.backbone is base or self.head is None:
            raise ValueError(
                f"{name} has no model below a language model head, so its hidden states cannot be had. Load it with "
                "`AutoModelForCausalLM`."
            )
        self.embedding = base.get_input_embeddings()
        self.device = self.embedding.weight.device
        config = base.config.get_text_config()
        self.width = config.hidden_size
        self.context = context_length(model)
        self._cap = getattr(config, "final_logit_softcapping", None)
        self._scale = _logit_scale(config)
        shape = getattr(getattr(self.head, "weight", None), "shape", None)  # another after a resize
        known = _LOOKED_AT.get(model)
        if known is None or known[0] != shape:
            with evaluation_mode(model):  # dropout would differ from pass to pass
                known = _LOOKED_AT[model] = shape, self._check(name)
        self.vocabulary = known[1]  # of the head: a config may say more

    @torch.no_grad()
    def _check(self, name: str) -> int:
        ids = torch.arange(1, 5, device=self.device)[None] % self.embedding.num_embeddings
        hidden = getattr(self.backbone(input_ids=ids), "last_hidden_state", None)
        if hidden is None:
            raise ValueError(f"{name} does not return `last_hidden_state`, from which its logits come.")
        expected = self.model(input_ids=ids).logits.float()
        error = (self.logits(hidden) - expected).abs().max() / expected.abs().max().clamp(min=1e-6)
        # Half precision rounds two ways to the same logits apart by far less; a scale or a cap that is not
        # known here moves them by their own size.
        if not error < 0.05:
            raise ValueError(
                f"The logits of {name} are not its head of its last hidden state (they differ by {error:.2g} of their "
                "size): it changes them in a way that is not known here."
            )
        return int(expected.shape[-1])

    def check_tokens(self, texts: Sequence[Sequence[int]], who: str) -> None:
        """Raise `ValueError` if token ids of a text are none of the model's; `who` is whose they are."""
        highest, rows = max((max(text) for text in texts if len(text)), default=0), self.embedding.num_embeddings
        if highest >= rows:
            raise ValueError(
                f"{who} has token {highest}, but the vocabulary of {type(base_of(self.model)).__name__} has {rows} "
                "tokens: use the model's own tokenizer, or resize the model's embedding to it."
            )

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits (..., V), float32, after hidden states (..., D)."""
        weight = self.head.weight if hasattr(self.head, "weight") else None
        if weight is not None and weight.is_floating_point():
            hidden = hidden.to(weight.dtype)
        logits = self.head(hidden).float() * self._scale
        return logits if not self._cap else self._cap * torch.tanh(logits / self._cap)


def _logit_scale(config: Any) -> float:
    scale = 1.0
    for name in ("logit_scale", "output_multiplier", "lm_head_multiplier"):
        scale *= getattr(config, name, None) or 1.0
    return scale / (getattr(config, "logits_scaling", None) or 1.0)
