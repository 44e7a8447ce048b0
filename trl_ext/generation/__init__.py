# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Prompts in, completions out: transformers' `generate`, streaming and vLLM.

Imports the modules at the top of `trl_ext`, `models`, `data`, `logprobs` and `decoding`.
"""
