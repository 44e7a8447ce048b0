# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
Ten minutes of one GPU: everything that is not measured on one yet, most important first, in one command.

Imports the harness and, in its processes, the suites.
"""
