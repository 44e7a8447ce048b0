# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""What PSLE needs of a device."""

from trl_ext.memory.needs import Needs

from .config import PSLEConfig


def needs(args: PSLEConfig) -> Needs:
    """As many completions with a principle as without; the best of n has none with it."""
    both = 1 if args.sft_target == "best" else 2
    return Needs(completions=both * args.num_generations, generated=args.num_generations, reference=args.beta > 0)
