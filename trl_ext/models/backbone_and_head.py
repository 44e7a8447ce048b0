# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""A causal language model as two parts: the backbone computes hidden states, the head turns them into logits."""

from collections.abc import Sequence
from typing import Any

import torch

from .architecture import hidden_width, logit_cap, logit_scale
from .load import use_exact_4bit_on_cpu
from .probe import Tolerance, probe, probe_tokens
from .properties import backbone_of, base_of, context_length, has_virtual_tokens


# Half precision rounds two ways to the same logits apart by far less, in any model; an unknown scale or cap on the
# logits changes them by about their own size.
_LOGITS_TOLERANCE = Tolerance(precise=0.05, rounded=0.05)


class BackboneAndHead:
    """
    The backbone and the head of a causal language model.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]): The language model.

    Raises:
        `ValueError`: It returns no hidden states, or its logits are not head(hidden state) in a known way.
    """

    def __init__(self, model: Any) -> None:
        if has_virtual_tokens(model):
            raise ValueError("The adapter adds virtual tokens to the start of every row. Use LoRA, or merge it.")
        # A user may have loaded the model in 4 bits without `load_model`. On some CPUs bitsandbytes then repacks its
        # layers in the first forward pass, fails for widths that its kernel lacks, and rounds differently than in
        # training.
        use_exact_4bit_on_cpu(model)
        base: Any = base_of(model)
        name = type(base).__name__
        self.model, self.head, self.backbone = model, base.get_output_embeddings(), backbone_of(model)
        if base.config.is_encoder_decoder:
            raise ValueError(
                f"{name} is an encoder-decoder, which reads prompt and completion in two parts: use a decoder-only "
                "language model."
            )
        if self.backbone is base or self.head is None:
            raise ValueError(
                f"{name} has no backbone below a language model head, which would return its hidden states. Load it "
                "with `AutoModelForCausalLM`."
            )
        self.embedding = base.get_input_embeddings()
        self.device = self.embedding.weight.device
        config = base.config.get_text_config()
        self.width = hidden_width(config)
        self.context = context_length(model)
        self._cap, self._scale = logit_cap(config), logit_scale(config)
        ids = torch.tensor([probe_tokens(self.embedding.num_embeddings, 4)], device=self.device)
        reason = probe(
            model,
            ("logits", getattr(getattr(self.head, "weight", None), "shape", None)),  # another shape after a resize
            lambda: self.logits(self._hidden(ids)),
            lambda: model(input_ids=ids).logits,
            _LOGITS_TOLERANCE,
            quantity="logits",
        )
        if reason is not None:
            raise ValueError(
                f"The logits of {name} cannot be computed as its head of its last hidden state: {reason}. Its config "
                "may scale or cap them in a way that is not known here."
            )
        # The config may state more tokens than the head has, and the head need not be an `nn.Linear`.
        self.vocabulary: int = getattr(self.head, "out_features", 0) or self._count_logits(ids)

    @torch.no_grad()
    def _count_logits(self, ids: torch.Tensor) -> int:
        return int(self.logits(self._hidden(ids)).shape[-1])

    def _hidden(self, ids: torch.Tensor) -> torch.Tensor:
        hidden = getattr(self.backbone(input_ids=ids), "last_hidden_state", None)
        if hidden is None:
            raise ValueError("its output has no `last_hidden_state`")
        return hidden

    def check_tokens(self, texts: Sequence[Sequence[int]], who: str) -> None:
        """
        Checks token ids against the vocabulary of the model.

        Args:
            texts (`Sequence[Sequence[int]]`): Token ids.
            who (`str`): Owner of the texts, for the message.

        Raises:
            `ValueError`: A token is outside of the vocabulary.
        """
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
