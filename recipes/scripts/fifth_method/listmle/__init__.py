# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
A method in a package of its own: ListMLE, the likelihood of the whole order of a prompt's completions.

Cost: half a minute on two CPU cores, without a network. `trl-ext listmle` prints the log of the training.

    pip install -e recipes/scripts/fifth_method
    trl-ext listmle --config recipes/scripts/fifth_method/listmle.yaml

Importing this module imports no torch, so that `trl-ext --help` stays fast.
"""

from trl_ext.method import Method


METHOD = Method(
    name="listmle",
    paper="",
    summary="Likelihood of the order of scored completions (Plackett-Luce).",
    config="listmle.trainer:ListMLEConfig",
    trainer="listmle.trainer:ListMLETrainer",
    columns=("prompt", "completions", "scores"),
)
