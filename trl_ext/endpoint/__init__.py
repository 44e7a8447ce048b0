# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""A client for OpenAI-compatible servers: completions, next-token probabilities and the server's tokens.

Imports `generation` and the folders below it.
"""
