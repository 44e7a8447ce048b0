# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Decoding guided by a value model: in transformers' `generate`, in CUDA graphs and on a server's tokens.

Imports the method's `value_model`, and the folders below `methods`, but not its trainer.
"""
