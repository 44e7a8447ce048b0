# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""What RRHF needs of a device."""

from trl_ext.memory.needs import Needs, generates_from

from .config import RRHFConfig


def needs(args: RRHFConfig) -> Needs:
    """The policy is trained on all completions of a prompt; a KL term and some ranking losses have a reference."""
    reference = args.beta > 0 or args.ranking_reference == "policy"
    return Needs(completions=args.num_generations, generates=generates_from(args), reference=reference)
