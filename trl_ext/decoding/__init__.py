# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""One forward pass, one token: sampling, candidate tokens on a shared KV cache, and CUDA-graph decoding.

Imports the modules at the top of `trl_ext`, `models`, `data` and `logprobs`.
"""
