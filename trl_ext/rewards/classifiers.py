# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""A sequence classifier (reward model) as a reward function."""

import logging
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from trl_ext.models.load import default_device, load_model, loading_error
from trl_ext.models.properties import is_quantized
from trl_ext.models.tokenizers import ensure_pad_token, load_tokenizer
from trl_ext.upstream import get_config_model_id


logger = logging.getLogger(__name__)


class ClassifierReward:
    """
    Reward function that returns a sequence classifier's logit for prompt and completion.

    Text prompts and completions are concatenated; messages are rendered with the classifier's own chat template. No
    special tokens are added. Texts that are longer than the classifier's context length are truncated at the start.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            Sequence classifier with one label. Its `pad_token_id` is set to the tokenizer's.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Its tokenizer.
        batch_size (`int`, *optional*, defaults to `64`):
            Texts in one call of the model.

    Raises:
        `ValueError`: The model has several labels.
    """

    def __init__(self, model: nn.Module, tokenizer: PreTrainedTokenizerBase, batch_size: int = 64) -> None:
        config: Any = model.config
        if getattr(config, "num_labels", 1) != 1:
            raise ValueError(
                f"The reward model '{get_config_model_id(config)}' has {config.num_labels} labels, but a reward is "
                "one number: use a model that was trained with num_labels=1."
            )
        ensure_pad_token(tokenizer)
        # Classifiers use the last position that is not padding, and recognize padding by this id.
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
        Load the model if it is a name, and the tokenizer if it is `None`.

        Args:
            model ([`~transformers.PreTrainedModel`] or `str`): The classifier, its directory or Hub id.
            tokenizer ([`~transformers.PreTrainedTokenizerBase`], *optional*): Its tokenizer.
            device (`torch.device` or `str`, *optional*): Device of the model. By default the accelerator for a model
                that is loaded here; any other model stays on its device.
            batch_size (`int`): Texts in one call of the model.
            trust_remote_code (`bool`): Whether to run code from the Hub.

        Raises:
            `OSError`: The model or the tokenizer cannot be loaded. The message names the model.
            `ValueError`: The model has several labels.
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
        """
        The texts that the classifier scores.

        Raises:
            `ValueError`: The prompts are conversational and the tokenizer has no chat template.
        """
        texts = []
        for prompt, completion in zip(prompts, completions, strict=True):
            if isinstance(prompt, str):
                texts.append(prompt + completion)
                continue
            if self.tokenizer.chat_template is None:
                raise ValueError(
                    "the prompts are conversational, but the reward model's tokenizer has no chat template: set "
                    "`tokenizer.chat_template`, or use a reward model that was trained on conversations."
                )
            texts.append(self.tokenizer.apply_chat_template([*prompt, *completion], tokenize=False))
        return texts

    @torch.no_grad()
    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], **_: Any) -> list[float]:
        """Logit of each completion."""
        rows: list[list[int]] = self.tokenizer(self.texts(prompts, completions), add_special_tokens=False)["input_ids"]
        if [] in rows:
            raise ValueError(f"completion {rows.index([])} and its prompt are empty: there is nothing to score.")
        if self.max_length and not self.warned and max(map(len, rows)) > self.max_length:
            logger.warning(
                "Texts longer than the reward model's %d tokens are truncated at the start.", self.max_length
            )
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
