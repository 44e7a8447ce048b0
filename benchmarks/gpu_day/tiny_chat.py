# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""What the chat comparison reads, at tiny sizes, for a rehearsal: a model with a chat template, and few prompts."""

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

from benchmarks.harness.models import MODELS, SHAPES
from trl_ext.atomic_files import write_text


TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
TRAINING, EVALUATION = 32, 4  # prompts; Proxy-RLHF's arm has no step with less than 64 completions


def write(folder: Path, prompts: Path) -> None:
    """
    Write `model/`, `train.jsonl` and `evaluation.jsonl`.

    Args:
        folder (`Path`): Where to.
        prompts (`Path`): The file of prompts whose first ones are taken.
    """
    tokenizer = AutoTokenizer.from_pretrained(MODELS / "imdb-2m")
    tokenizer.chat_template = TEMPLATE
    shape = SHAPES["tiny"]
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.num_hidden_layers,
        num_attention_heads=shape.num_attention_heads,
        num_key_value_heads=shape.num_key_value_heads,
        max_position_embeddings=1024,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    lines = prompts.read_text(encoding="utf-8").splitlines(keepends=True)
    for name, count in (("train", TRAINING), ("evaluation", EVALUATION)):
        write_text(folder / f"{name}.jsonl", "".join(lines[:count]))
