# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
Suites that time one way to do a piece of work against another, most of them with its memory.

Imports `trl_ext` and `benchmarks.harness`.
"""
