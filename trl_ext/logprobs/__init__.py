# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Log-probabilities of completions, without full logits and with each prompt computed once for all its completions.

Imports the modules at the top of `trl_ext`, `models` and `data`.
"""
