# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""The value model: its config, its backbone, its heads, and how it is saved and loaded.

Imports the folders below `methods`, and nothing else of the method.
"""
