# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""PSLE, later called PLE (arXiv 2408.02599): learn from one's own answers with and without a principle."""

from trl_ext.method import Method


METHOD = Method(
    name="psle",
    paper="2408.02599",
    summary="Learn from one's own answers with and without a principle: rank wide reward gaps, imitate the rest.",
    config="trl_ext.methods.psle.config:PSLEConfig",
    trainer="trl_ext.methods.psle.trainer:PSLETrainer",
    columns=("prompt",),
    # v2 of the paper and its ICML version call the same method PLE.
    exports=("trl_ext.methods.psle.config:PLEConfig", "trl_ext.methods.psle.trainer:PLETrainer"),
)
