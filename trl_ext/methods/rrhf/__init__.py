# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""RRHF (arXiv 2304.05302): rank completions by the policy's own log-probabilities, and imitate the best of them."""

from trl_ext.method import Method


METHOD = Method(
    name="rrhf",
    paper="2304.05302",
    summary="Rank scored completions by the policy's own log-probabilities, plus SFT on the best.",
    config="trl_ext.methods.rrhf.config:RRHFConfig",
    trainer="trl_ext.methods.rrhf.trainer:RRHFTrainer",
    columns=("prompt", "completions", "scores"),
    memory="trl_ext.methods.rrhf.memory:needs",
    exports=("trl_ext.methods.rrhf.ranking_registry:RankingLoss",),
)
