# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
An OpenAI-compatible HTTP server of policies: plain models, guided ones and those with a proxy.

Imports `evaluation`, `inference` and the folders below them; it knows methods only by the policies that they make.
"""
