# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Measures policies on prompts: rewards, KL, perplexity, diversity, and the reward-KL frontier.

Imports `inference` and the folders below it, and not the methods.
"""
