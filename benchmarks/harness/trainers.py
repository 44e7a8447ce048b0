# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""What suites that time a trainer's steps give it as a formality: settings and a tokenizer."""

import warnings
from typing import Any

import torch


def trainer_args(config: Any, folder: str, device: torch.device, **settings: Any) -> Any:
    """A trainer's `config` that writes to `folder` and leaves the weights in their dtype, that of all variants."""
    common = {"use_cpu": device.type == "cpu", "bf16": False, "gradient_checkpointing": False, "report_to": []}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # TRL and transformers disagree on the name of a setting
        return config(folder, **common | settings)


def make_tokenizer(eos_token_id: int = 1) -> Any:
    """
    A tokenizer of few words, for trainers that insist on one: batches come as token ids.

    Args:
        eos_token_id (`int`, *optional*, defaults to `1`): An id that a model does not have lets no completion end.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {"<pad>": 0, "<eos>": eos_token_id, "a": 2, "b": 3, "c": 4}
    core = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="<eos>", unk_token="<pad>")
