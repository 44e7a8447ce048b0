# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
The claims of the papers, and what the results say about each: `claims.yaml` beside this folder.

`figures` finds the figures that a claim names, `verdicts` compares them, `file` reads and checks the file, `page`
writes the tables of `results/claims.md`. Imports `run`, for the suites.
"""
