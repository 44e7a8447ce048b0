# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""What Proxy-RLHF needs of a device."""

from itertools import pairwise

from trl_ext.memory.estimate import Sizes
from trl_ext.memory.inventory import Inventory
from trl_ext.memory.needs import Needs

from .config import ProxyRLHFConfig
from .decision_process import FEATURES
from .model import default_layer_sizes


def needs(args: ProxyRLHFConfig) -> Needs:
    """
    The language model is frozen. A proxy and its critic are trained on the hidden states of a round's decisions.

    A proxy that accepts with probability p is asked 1 / p times for each token, until it is trained otherwise.
    """
    width = FEATURES[args.feature]
    asked = width / args.initial_accept_rate

    def layers(hidden: int) -> list[int]:
        return [hidden * width, *(args.proxy_layer_sizes or default_layer_sizes(hidden)), 1]

    networks = 1 if args.advantage_estimator == "rloo" else 2

    def own(hidden: int, vocabulary: int) -> int:
        sizes = layers(hidden)
        return networks * (2 * sizes[0] + sum((a + 1) * b for a, b in pairwise(sizes)))

    def update(model: Inventory, sizes: Sizes, completions: int) -> float:
        """The decisions of a round, and what a minibatch of them keeps in each network."""
        texts = sizes.prompts * sizes.accumulation * completions
        states = texts * sizes.completion * asked / width
        each = layers(model.hidden)
        kept = states * each[0] * model.weight_bytes
        of_one = networks * 4 * (3 * each[0] + 3 * sum(each[1:])) + each[0] * model.weight_bytes
        return kept + states / args.num_mini_batches / sizes.accumulation * of_one

    return Needs(
        completions=args.num_generations,
        log_probs=False,
        trains_language_model=False,
        own=own,
        update=update,
        candidates=args.first_candidates or args.top_k,
        kept=asked,
    )
