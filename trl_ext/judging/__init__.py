# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Compares the completions of two policies pair by pair: judges, verdicts that are kept, and win rates.

Imports `evaluation` and the folders below it; torch only where a judge is a reward model.
"""
