# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
Suites of what a method needs on one card: measured on a GPU, or counted without one.

Imports `trl_ext`, `benchmarks.harness`, and the batches and losses of `benchmarks.speed`.
"""
