# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""The value model: its config, backbones, heads, and how it is loaded and saved.

Imports what the method may import, and nothing else of the method.
"""
