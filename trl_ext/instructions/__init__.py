# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Instructions that code can check: prompts with constraints, their checkers and reward functions.

Imports `data` and the folders below it, and not `rewards`, which finds these functions by their import paths.
"""
