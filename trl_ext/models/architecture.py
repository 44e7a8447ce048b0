# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
Table of config settings that change what the attention layers and the head of a model compute.

Every fast path that replaces a part of a model reads it, so that one entry here is known to all of them.
"""

from typing import Any


# Kinds of attention layers, as transformers names them in `layer_types`.
FULL, SLIDING = "full_attention", "sliding_attention"

# Settings that limit attention to near positions in configs without `layer_types`, beside `sliding_window`.
_WINDOWS = ("window_size", "attention_window_size", "attention_chunk_size")

# Settings by which logits are multiplied or divided after the head, and the cap on their size.
_LOGIT_FACTORS = ("logit_scale", "output_multiplier", "lm_head_multiplier")
_LOGIT_DIVISORS = ("logits_scaling",)
_LOGIT_CAP = "final_logit_softcapping"

# The cap on attention scores, which only eager attention applies.
_SCORE_CAP = "attn_logit_softcapping"


def hidden_width(config: Any) -> int:
    """
    Channels of a model's last hidden state, which its head takes.

    Args:
        config ([`~transformers.PreTrainedConfig`]): The text config of the model.
    """
    # OPT-350m projects its hidden states back to the size of its embeddings.
    return int(getattr(config, "word_embed_proj_dim", None) or config.hidden_size)


def layer_kinds(config: Any) -> set[str]:
    """
    Kinds of the layers of a model: `"full_attention"`, `"sliding_attention"`, or others, which no fast path supports.

    Args:
        config ([`~transformers.PreTrainedConfig`]): The text config of the model.
    """
    kinds = set(getattr(config, "layer_types", None) or ())
    if kinds:
        return kinds
    own = next((name for name in _WINDOWS if getattr(config, name, None)), None)
    if own is not None:
        return {f"attention limited by `{own}`"}
    window = getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True)
    return {SLIDING if window else FULL}


def score_cap(config: Any) -> float:
    """Cap on the attention scores: `cap * tanh(score / cap)`. `0` if there is none."""
    return getattr(config, _SCORE_CAP, None) or 0.0


def logit_cap(config: Any) -> float:
    """Cap on the logits, after their scale: `cap * tanh(logit / cap)`. `0` if there is none."""
    return getattr(config, _LOGIT_CAP, None) or 0.0


def logit_scale(config: Any) -> float:
    """Factor by which the output of the head is multiplied to give logits; `1` in most models."""
    scale = 1.0
    for name in _LOGIT_FACTORS:
        scale *= getattr(config, name, None) or 1.0
    for name in _LOGIT_DIVISORS:
        scale /= getattr(config, name, None) or 1.0
    return scale
