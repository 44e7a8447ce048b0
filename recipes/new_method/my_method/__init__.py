# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""MyMethod: makes the ranking of scored completions likely under the model's own log-probabilities."""

from trl_ext.method import Method


METHOD = Method(
    name="my_method",
    paper="",  # arXiv identifier
    summary="Make the ranking of scored completions likely, plus SFT on the best.",
    config="my_method.config:MyMethodConfig",
    trainer="my_method.trainer:MyMethodTrainer",
    columns=("prompt", "completions", "scores"),
)
