# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Guides: they score candidate tokens while a frozen language model generates; a logits processor adds the scores.

Imports `rewards` and the folders below it: a classifier that guides is loaded and called as one that rewards.
"""
