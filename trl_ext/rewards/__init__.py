# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Reward functions and reward models, and the scoring of completions that every caller shares.

Imports `generation` and the folders below it, and not `endpoint`.
"""
