# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
Guidance of models that vLLM serves, as logits processors of vLLM's (`trl_ext.vllm:ValueGuide` and `ProxyGuide`).

Imports `inference`, `guides` and the folders below them, and vLLM where it is installed; it knows a value model as a
kind of guide, and a proxy by what a method declares for engines.
"""
