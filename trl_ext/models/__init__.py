# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Loads language models, adapters and tokenizers, and handles their modes and their sharded parameters.

Imports only the modules at the top of `trl_ext`, and not `data`.
"""
