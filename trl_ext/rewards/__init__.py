# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Reward functions, reward models and servers of them, and the scoring of completions that every caller shares.

Imports `endpoint`, whose client asks the servers, and the folders below it.
"""
