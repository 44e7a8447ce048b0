# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Decoding with a proxy: the walk over candidate tokens, in transformers' loop and in CUDA graphs.

Imports the method's `decision_process`, `data` and `losses`, and the folders below `methods`, but not its trainer.
"""
