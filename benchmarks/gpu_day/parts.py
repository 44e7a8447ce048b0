# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""What is measured, most important first; imports no torch, so that nothing waits for it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Part:
    """
    One run of a suite, in a process of its own.

    Args:
        name (`str`): In results, and for `--parts`.
        question (`str`): What it answers, for the table.
        suite (`str`): One of `benchmarks.run`.
        arguments (`tuple[str, ...]`, *optional*): Of the suite. `{seconds}` is the time that is left, `{work}` the
            folder of what an interrupted run needs to go on.
        least (`float`, *optional*, defaults to `30`): Seconds without which it is not begun.
        most (`float`, *optional*, defaults to `120`): Seconds after which it is ended. It goes on after the other
            parts if time is left.
        rehearsal (`tuple[str, ...]`, *optional*): More arguments in a rehearsal, of a suite that has no `--rehearse`.
        again (`bool`, *optional*, defaults to `False`): Whether it measures cases that an earlier part has measured,
            with all of their variants.
    """

    name: str
    question: str
    suite: str
    arguments: tuple[str, ...] = ()
    least: float = 30
    most: float = 120
    rehearsal: tuple[str, ...] = ()
    again: bool = False


_FEW = ("--rounds", "3", "--batches", "1")
_RRHF = ("RRHF step, 1 prompt × 6", "RRHF step, 8 prompts", "RRHF step, 16 prompts", "RRHF step, 32 prompts")
_GRAPHS = ("plain", "form `state`", "k = 4", "unguided")

SPEED = (
    Part("first_run", "Does it run: the tests that need a GPU, the quickstarts?", "first_run", least=40, most=90),
    Part("memory_rrhf", "Memory and time of RRHF, an 8B in 4 bits, on 8 to 24 GB", "card_memory", ("--cases", *_RRHF)),
    Part(
        "memory_methods",
        "Memory and time of PSLE, Proxy-RLHF and VAS, an 8B in 4 bits, on 8 to 24 GB",
        "card_memory",
        ("--cases", "GB card"),
        most=150,
    ),
    Part(
        "rrhf_1b",
        "RRHF's step against TRL's fused rows, a 1B",
        "rrhf_step",
        ("--cases", "llama-1b", "--rounds", "3"),
        most=90,
    ),
    Part(
        "rrhf_8b",
        "RRHF's step against TRL's fused rows, an 8B in 4 bits",
        "rrhf_step",
        ("--cases", "llama-8b-qlora/", "--variants", "TRL's head", "shared", "--rounds", "3"),
        most=100,
    ),
    Part(
        "graph_decode",
        "Guided decoding in CUDA graphs against unguided: VAS, Proxy-RLHF",
        "graph_decode",
        ("--variants", *_GRAPHS, *_FEW),
        least=40,
        most=110,
    ),
    Part(
        "sampling",
        "Sampling against transformers' `generate`",
        "sampling",
        ("--variants", "transformers", "ours", "--rounds", "2", "--batches", "1"),
        most=100,
    ),
    Part("psle_step", "PSLE's update and generation against TRL's GRPO", "psle_step", _FEW, most=80),
    Part("proxy_update", "Proxy-RLHF's update against policy gradient", "proxy_update", _FEW, most=80),
    # What has no goal of its own, or one that matters less: in the time that is left.
    Part("vas_decode", "VAS through `generate`, against the naive form", "vas_decode", _FEW),
    Part("proxy_decode", "Proxy-RLHF without CUDA graphs, against the naive form", "proxy_decode", _FEW),
    Part("vas_train", "VAS's step against TRL's RewardTrainer", "vas_train", _FEW),
    Part("rrhf_anchor", "RRHF's step with AdamW, in all forms", "rrhf_step", ("--cases", "optimizer", *_FEW)),
    Part("graph_all", "Guided decoding in CUDA graphs: all forms", "graph_decode", _FEW, least=60, again=True),
    Part("memory_settings", "Memory of an 8B in 4 bits by settings", "card_memory", most=200),
)
# Models and prompts of tiny_chat.py.
_TINY_CHAT = {
    "--model": "{work}/tiny/model",
    "--train": "{work}/tiny/train.jsonl",
    "--evaluation": "{work}/tiny/evaluation.jsonl",
    "--other": "{work}/tiny/evaluation.jsonl",
    "--dtype": "float32",
    "--prompts": "32",
    "--passes": "1",
    "--num_generations": "2",
    "--answers": "1",
    "--batch": "4",
    "--max_completion_length": "8",
    "--texts": "4",
    "--text_tokens": "16",
}
CHAT = (
    Part(
        "chat",
        "The four methods beside TRL's trainers on a real chat model",
        "chat",
        ("--preset", "gpu", "--seeds", "0", "--jobs", "4", "--time_limit", "{seconds}", "--work", "{work}/chat"),
        least=120,
        most=float("inf"),
        rehearsal=tuple(word for flag, value in _TINY_CHAT.items() for word in (flag, value)),
    ),
)
SUITES = {"speed": SPEED, "chat": CHAT}
