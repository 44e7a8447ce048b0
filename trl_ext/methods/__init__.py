# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""The four alignment methods, one folder each, found through the entry points `trl_ext.methods`.

A method imports the folders below this one and never another method.
"""
