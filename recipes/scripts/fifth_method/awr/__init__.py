# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
A method in a package of its own: advantage-weighted regression (AWR), which imitates completions by their scores.

Each completion has a weight that grows exponentially with its score, so it matters by how much one is better than
another; the rankings of RRHF and DPO do not see that.

    pip install -e recipes/scripts/fifth_method
    trl-ext awr --config recipes/scripts/fifth_method/awr.yaml

Importing this module imports no torch, so that `trl-ext --help` stays fast.
"""

from trl_ext.method import Method


METHOD = Method(
    name="awr",
    paper="1910.00177",
    summary="Imitate completions, each with a weight that grows exponentially with its score.",
    config="awr.trainer:AWRConfig",
    trainer="awr.trainer:AWRTrainer",
    columns=("prompt", "completions", "scores"),
)
