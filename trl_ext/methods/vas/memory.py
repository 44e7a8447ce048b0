# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""What VAS needs of a device."""

from trl_ext.memory.estimate import Sizes, positions
from trl_ext.memory.inventory import Inventory
from trl_ext.memory.needs import Needs, generates_from

from .config import VASConfig


def needs(args: VASConfig) -> Needs:
    """
    A value model is trained: a backbone of its own, or an adapter or only heads on the frozen language model.

    The language model is in memory if it generates, or if the value model shares its weights.
    """
    heads, rank = len(args.heads or ["reward"]), args.action_rank

    def own(hidden: int, vocabulary: int) -> int:
        head = heads * (hidden + 1) * (args.num_atoms if args.value_head == "categorical" else 1)
        return head if args.value_form == "state" else head + rank * (vocabulary + heads * hidden)

    def update(model: Inventory, sizes: Sizes, completions: int) -> float:
        """The language model's hidden states, and what the heads keep of them."""
        tokens, predicted, _ = positions(completions, sizes, model)
        return tokens * model.hidden * 4.0 * model.weight_bytes + predicted * (model.hidden + 2 * rank) * 4.0

    second = args.value_model_name_or_path or ""
    head_only = args.value_form == "policy"
    if not (second or head_only or getattr(args, "use_peft", True)):
        raise ValueError(
            "There is no value model: set value_model_name_or_path (a small model with the language model's "
            "tokenizer), use_peft (an adapter on the language model) or value_form policy (a head on it)."
        )
    return Needs(
        completions=args.num_generations,
        trained=args.num_generations * (args.num_iterations if args.keep_samples else 1),
        generates=generates_from(args),
        log_probs=False,
        second=second,
        trains_language_model=not (second or head_only),
        own=own,
        update=update if head_only else None,
    )
