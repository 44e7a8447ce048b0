# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Datasets: the row schema and its checks, loading, prompts, chat templates, tokenization, and files that resume where
they stopped.

Imports only the modules at the top of `trl_ext`, and not `models`.
"""
