# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""PSLE, later called PLE (arXiv 2408.02599): learns from the policy's completions with and without a principle."""

from trl_ext.commands import REWARD
from trl_ext.method import Method


METHOD = Method(
    name="psle",
    paper="2408.02599",
    summary="Generate with and without a principle: rank pairs with a wide reward gap, imitate the others.",
    config="trl_ext.methods.psle.config:PSLEConfig",
    trainer="trl_ext.methods.psle.trainer:PSLETrainer",
    columns=("prompt",),
    memory="trl_ext.methods.psle.memory:needs",
    required=(REWARD,),
    # v2 of the paper and its ICML version call the same method PLE.
    exports=("trl_ext.methods.psle.config:PLEConfig", "trl_ext.methods.psle.trainer:PLETrainer"),
)
