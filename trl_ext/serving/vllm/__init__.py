# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
Guidance of models that vLLM serves, as a logits processor of vLLM's (`trl_ext.vllm:ValueGuide`).

Imports `guides` and the folders below it, and vLLM where it is installed; it knows a value model as a kind of guide.
"""
