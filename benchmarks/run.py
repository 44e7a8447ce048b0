# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
Run a suite by name; without a name, list them.

    python -m benchmarks.run [<suite> [its options]]

`speed` and `memory` run all suites that time variants against one another (each measures both). A suite is a module of
one of the folders with a `SUITE`, which measures, writes results and makes the tables of its page.
"""

import importlib
import sys
from collections.abc import Sequence

from .harness.suite import Suite


SUITES = {
    "quality": "reward, KL, fluency and cost of the four methods beside TRL's DPO, GRPO, PPO and best-of-n",
    "chat": "the four methods beside TRL's trainers, best-of-n and a principle on a chat model and constraints",
    "ifeval": "what the arms of chat follow of IFEval's instructions, by lm-eval's checkers",
    "preferences": "pair accuracy of RRHF, DPO and a reward model on real preference data; training against it",
    "tools": "valid function calls of a model behind an API, alone and guided by values",
    "imdb": "Proxy-RLHF, PSLE and VAS on the IMDB task: settings, ablations and seeds, on one GPU",
    "rrhf_step": "seconds and peak memory of an RRHF training step: naive, TRL's head, shared prompts, TRL's DPO",
    "scaling": "how time grows with K, lengths, prompts, the model and candidates: slopes beside those of arithmetic",
    "vas_decode": "tokens/s of value-guided decoding: unguided, candidate by candidate, tiled, ours; of some tokens",
    "vas_train": "tokens/s of a VAS training step: separate rows, shared prompts, TRL's RewardTrainer",
    "proxy_decode": "tokens/s of Proxy-RLHF's decoding: plain, one candidate at a time, ours with 4, 8 and 20",
    "proxy_update": "seconds of Proxy-RLHF's PPO update, against an epoch of policy gradient through the model",
    "ppo_round": "seconds and memory of a round of Proxy-RLHF, against TRL's PPO as TRL last had it",
    "graph_decode": "tokens/s of decoding by CUDA graphs: unguided, by VAS in its three forms, by Proxy-RLHF",
    "sampling": "tokens/s of sampling completions, against transformers' generate",
    "first_run": "whether it runs at all on a GPU: the tests that need one, a few steps of each quickstart",
    "card_memory": "peak memory of each method on one card, an 8B in 4 bits, and the settings that lower it",
    "gpu_day": "all of it that needs a GPU, most important first, in ten minutes: python -m benchmarks.gpu_day",
    "card_count": "what the tensors of card_memory's cases occupy, counted on a CPU",
    "row_count": "peak memory as the number of rows grows: a stream, a large round, sampling and scoring",
    "psle_step": "seconds per prompt of PSLE's generation, reward and update, against TRL's GRPO",
}


# What trains models and measures their completions; the other suites take turns.
OUTCOMES = ("quality", "chat", "ifeval", "preferences", "tools", "imdb")

# What measures memory alone.
MEMORY = ("card_memory", "card_count", "row_count")

# Suites that no name for several includes: they compare no variants that take turns.
ALONE = (*OUTCOMES, "scaling", "card_count", "row_count", "first_run", "gpu_day")

# Names for several: all that take turns.
GROUPS = {name: [suite for suite in SUITES if suite not in ALONE] for name in ("speed", "memory")}


def suite_of(name: str) -> Suite:
    """The suite of a name in [`SUITES`]."""
    folder = "quality" if name in OUTCOMES else "memory" if name in MEMORY else "speed"
    module = "benchmarks.gpu_day.page" if name == "gpu_day" else f"benchmarks.{folder}.{name}"
    found: Suite = importlib.import_module(module).SUITE
    return found


def main(argv: Sequence[str] | None = None) -> int:
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(__doc__.strip(), "", *(f"{name:<12} {what}" for name, what in SUITES.items()), sep="\n")
        return 0
    name, *rest = arguments
    if name not in SUITES and name not in GROUPS:
        print(f"There is no suite {name!r}. Suites: {', '.join([*SUITES, *GROUPS])}.", file=sys.stderr)
        return 2
    return max(suite_of(suite).main(rest) for suite in GROUPS.get(name, [name]))


if __name__ == "__main__":
    sys.exit(main())
