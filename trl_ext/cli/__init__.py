# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""The command `trl-ext`: one module for each subcommand, and the parsing they share.

Imports every folder but `methods`, which it finds by their entry points. Only `python -m trl_ext` imports it.
"""
