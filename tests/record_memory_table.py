# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Writes the table in `docs/memory.md`: `python tests/record_memory_table.py`."""

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

from trl_ext.cli.train import make_parser
from trl_ext.memory.fitting import largest_batch
from trl_ext.memory.planner import Planner
from trl_ext.method import discover


PAGE = Path(__file__).parents[1] / "docs" / "memory.md"
BEGIN, END = "<!-- table: begin -->\n", "<!-- table: end -->\n"
CARDS = (8, 12, 16, 24)
METHODS = ("rrhf", "psle", "vas", "proxy_rlhf")

# The sizes that are in the configs of the models.
_QWEN = {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "tie_word_embeddings": True}
_NAMES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
_SIZES = {
    "Qwen2.5-0.5B": (896, 4864, 24, 14, 2, _QWEN | {"vocab_size": 151936}),
    "Qwen2.5-1.5B": (1536, 8960, 28, 12, 2, _QWEN | {"vocab_size": 151936}),
    "Qwen2.5-3B": (2048, 11008, 36, 16, 2, _QWEN | {"vocab_size": 151936}),
    "Qwen2.5-7B": (3584, 18944, 28, 28, 4, _QWEN | {"vocab_size": 152064, "tie_word_embeddings": False}),
    "Llama-3.1-8B": (
        *(4096, 14336, 32, 32, 8),
        {
            "model_type": "llama",
            "architectures": ["LlamaForCausalLM"],
            "vocab_size": 128256,
            "tie_word_embeddings": False,
        },
    ),
}
CONFIGS = {name: dict(zip(_NAMES, sizes, strict=False)) | sizes[-1] for name, sizes in _SIZES.items()}

# What the table is about, and what of it differs from a cell to the next.
COMMON = "--max_length 768 --max_completion_length 256 --gradient_checkpointing true --reward_funcs a_function"
LORA = "--use_peft true --lora_r 16 --lora_target_modules all-linear"
COMPLETIONS = {"psle": "--num_generations 2"}
FROZEN = {"16 bits": "--dtype bfloat16", "4 bits": "--load_in_4bit true"}
TRAINED = {
    "all": "--optim paged_adamw_8bit",
    "LoRA": f"--dtype bfloat16 {LORA}",
    "QLoRA": f"--load_in_4bit true {LORA}",
}
TIERS = {
    "rrhf": TRAINED,
    "psle": TRAINED,
    "vas": {k: v for k, v in TRAINED.items() if k != "all"},
    "proxy_rlhf": FROZEN,
}
GENERATED = (64, 32, 16, 8, 4)


def table(models: dict[str, dict] = CONFIGS, methods: tuple[str, ...] = METHODS) -> list[str]:
    """The lines of the table."""
    lines = [f"| model | method | {' | '.join(f'{card} GB' for card in CARDS)} |", "|---|---|" + "---|" * len(CARDS)]
    with tempfile.TemporaryDirectory() as folder:
        for model, config in models.items():
            path = Path(folder) / f"{model}.json"
            path.write_text(json.dumps(config | {"dtype": "bfloat16", "max_position_embeddings": 32768}))
            for method in methods:
                planners = list(_planners(method, str(path)))
                cells = [_cell(planners, card) for card in CARDS]
                lines.append(f"| {model} | `{method}` | {' | '.join(cells)} |")
    return lines


def _planners(method: str, path: str) -> Iterator[tuple[str, Planner]]:
    found = discover().methods[method].method
    for tier, flags in TIERS[method].items():
        words = f"--model_name_or_path {path} {COMMON} {COMPLETIONS.get(method, '')} {flags}".split()
        yield tier, Planner(found, make_parser(found).parse_flags(words))


def _cell(planners: list[tuple[str, Planner]], card: float) -> str:
    """The first way to train that fits, with the largest batches."""
    for tier, planner in planners:
        for rows in GENERATED:
            planner.flags.generation_batch_size = rows
            batch = largest_batch(planner, card)
            if batch:
                return f"{tier}, {min(batch, 64)} · {rows}"
    return "—"


if __name__ == "__main__":
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    PAGE.write_text(before + BEGIN + "\n".join(table()) + "\n" + END + after, encoding="utf-8")
