# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Measures policies on prompts: rewards, KL, perplexity, diversity, and the reward-KL frontier of several evaluations.

`docs/evaluation.md` defines the KL of all points of a plot.

Imports `inference` and the folders below it, and not the methods.
"""
