# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""What RRHF needs of a device."""

from trl_ext.memory.needs import Needs, generates_from

from .config import RRHFConfig


def needs(args: RRHFConfig) -> Needs:
    """The policy is trained on all completions of a prompt; with a KL term there is a reference."""
    return Needs(completions=args.num_generations, generates=generates_from(args), reference=args.beta > 0)
