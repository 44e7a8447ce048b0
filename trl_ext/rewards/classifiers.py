# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0
"""A sequence classifier as a reward function."""

import logging
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from trl_ext.models.load import default_device, is_quantized, load_model, loading_error
from trl_ext.models.tokenizers import ensure_pad_token, load_tokenizer
from trl_ext.upstream import get_config_model_id


logger = logging.getLogger(__name__)


class ClassifierReward:
    """
    The logit of a sequence classifier on prompt and completion, as a reward function.

    Plain text is prompt + completion; messages go through the classifier's own chat template. No special tokens are
    added; what is longer than the model's positions loses its beginning.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            Sequence classifier with one label.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Its tokenizer.
        batch_size (`int`, *optional*, defaults to `64`):
            Texts in one call of the model.
    """

    def __init__(self, model: nn.Module, tokenizer: PreTrainedTokenizerBase, batch_size: int = 64) -> None:
        config: Any = model.config
        if getattr(config, "num_labels", 1) != 1:
            raise ValueError(
                f"The reward model '{get_config_model_id(config)}' has {config.num_labels} labels: a reward is one "
                "number, so it must have been trained with num_labels=1."
            )
        ensure_pad_token(tokenizer)
        # Classifiers read the last position that is not padding, and know the padding by this id.
        config.get_text_config().pad_token_id = tokenizer.pad_token_id
        positions = getattr(config.get_text_config(), "max_position_embeddings", None)
        self.max_length: int | None = positions or min(tokenizer.model_max_length, 1 << 20)
        self.model, self.tokenizer, self.batch_size = model, tokenizer, batch_size
        self.warned = False

    @classmethod
    def load(
        cls, model: Any, tokenizer: Any, device: Any, batch_size: int, trust_remote_code: bool
    ) -> "ClassifierReward":
        """
        Loads what is missing: the model if it is a name, the tokenizer if it is `None`.

        Raises:
            `OSError`: One of them cannot be loaded; names the model.
            `ValueError`: The model gives several numbers a text.
        """
        name = model if isinstance(model, str) else get_config_model_id(model.config)
        options: dict[str, Any] = {"trust_remote_code": trust_remote_code}
        try:
            if tokenizer is None:
                tokenizer = load_tokenizer(name, padding_side="right", **options)
            if isinstance(model, str):
                model = load_model(name, head="sequence_classification", num_labels=1, **options)
                device = default_device() if device is None else device
        except OSError as error:
            raise loading_error("reward model", name, error) from error
        if device is not None and not is_quantized(model):
            model.to(device)
        return cls(model.eval(), tokenizer, batch_size)

    def texts(self, prompts: Sequence[Any], completions: Sequence[Any]) -> list[str]:
        """What the classifier reads: `list[str]`. Raises `ValueError` for messages if it has no chat template."""
        texts = []
        for prompt, completion in zip(prompts, completions, strict=True):
            if isinstance(prompt, str):
                texts.append(prompt + completion)
                continue
            if self.tokenizer.chat_template is None:
                raise ValueError(
                    "the prompts are conversational, but the reward model's tokenizer has no chat template; set "
                    "`tokenizer.chat_template`, or use a reward model that was trained on conversations."
                )
            texts.append(self.tokenizer.apply_chat_template([*prompt, *completion], tokenize=False))
        return texts

    @torch.no_grad()
    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], **_: Any) -> list[float]:
        """Logits of the completions, as a list of floats."""
        rows: list[list[int]] = self.tokenizer(self.texts(prompts, completions), add_special_tokens=False)["input_ids"]
        if [] in rows:
            raise ValueError(f"completion {rows.index([])} and its prompt are empty: there is nothing to judge.")
        if self.max_length and not self.warned and max(map(len, rows)) > self.max_length:
            logger.warning("Texts longer than the reward model's %d positions are cut at the start.", self.max_length)
            self.warned = True
        rows = [row[-self.max_length :] for row in rows] if self.max_length else rows
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
        device, logits = next(self.model.parameters()).device, [0.0] * len(rows)
        for start in range(0, len(order), self.batch_size):
            chosen = order[start : start + self.batch_size]
            batch = {"input_ids": [rows[i] for i in chosen]}
            inputs = self.tokenizer.pad(batch, padding_side="right", return_attention_mask=True, return_tensors="pt")
            for i, logit in zip(chosen, self.model(**inputs.to(device)).logits[:, 0].float().tolist(), strict=True):
                logits[i] = logit
        if not all(map(math.isfinite, logits)):
            bad = next(i for i, logit in enumerate(logits) if not math.isfinite(logit))
            raise ValueError(f"the reward model's logit for completion {bad} is {logits[bad]}.")
        return logits
