# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Small models of many architectures, and hidden states of candidates by one forward pass each, without a cache."""

import torch
from transformers import (
    AutoModel,
    BloomConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    GPT2Config,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
)


VOCABULARY = 60
SMALL = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "initializer_range": 0.3,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": 1,
}
HEADS = {
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 128,
    "max_position_embeddings": 128,
}
CONFIGS = {
    "llama": lambda: LlamaConfig(**SMALL, **HEADS),
    "qwen2": lambda: Qwen2Config(**SMALL, **HEADS),
    "qwen2 sliding": lambda: Qwen2Config(
        **SMALL, **HEADS, use_sliding_window=True, sliding_window=4, max_window_layers=1
    ),
    "qwen3": lambda: Qwen3Config(**SMALL, **HEADS, head_dim=16),
    "mistral": lambda: MistralConfig(**SMALL, **HEADS, sliding_window=None),
    "mistral sliding": lambda: MistralConfig(**SMALL, **HEADS, sliding_window=4),
    "gemma": lambda: GemmaConfig(**SMALL, **HEADS, head_dim=16),
    "gemma2": lambda: Gemma2Config(**SMALL, **HEADS, head_dim=16, sliding_window=4),
    "gemma3": lambda: Gemma3TextConfig(
        **SMALL, **HEADS, head_dim=16, sliding_window=4, layer_types=["sliding_attention", "full_attention"]
    ),
    "gpt2": lambda: GPT2Config(**SMALL, n_head=4, n_positions=128, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0),
    "bloom": lambda: BloomConfig(**SMALL, n_head=4),
    "mamba": lambda: MambaConfig(**SMALL),
}
SHARED = [name for name in CONFIGS if name not in ("bloom", "mamba")]
RECOMPUTED = ["bloom", "mamba"]

PROMPTS = [[5, 6, 7, 8, 9], [10], [11, 12, 13, 14, 15, 16, 17, 18], [20, 21]]
CANDIDATES = [[22, 23, 24, 25], [26, 27, 28, 29], [30, 31, 32, 33], [34, 35, 36, 37]]
MORE = [[38, 39, 40], [41, 42, 43], [44, 45, 46], [47, 48, 49]]


def backbone(name="llama", attention=None, dtype=torch.float32):
    torch.manual_seed(0)
    return AutoModel.from_config(CONFIGS[name](), attn_implementation=attention, dtype=dtype).eval()


@torch.no_grad()
def states(model, ids):
    """Hidden states of one sequence, of shape (T, D), in one uncached forward pass without padding."""
    return model(input_ids=torch.tensor([ids])).last_hidden_state[0]


def branches_by_loop(model, rows, candidates):
    return torch.stack(
        [
            torch.stack([states(model, [*row, token])[-1] for token in tokens])
            for row, tokens in zip(rows, candidates, strict=True)
        ]
    )


def close(found, expected, tolerance=1e-4):
    return torch.allclose(found, expected, atol=tolerance, rtol=tolerance)


# Gemma 2 caps its scores, which SDPA cannot; some versions of transformers take it all the same.
CAPPED = {"gemma2": "eager"}
