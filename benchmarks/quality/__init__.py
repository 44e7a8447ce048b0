# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
Suites that train and measure models: reward, KL to the base model, fluency and cost of methods and settings.

Imports `trl_ext` and `benchmarks.harness`.
"""
