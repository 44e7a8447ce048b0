# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Whatever answers prompts after training: policies, guided models, best-of-n and sampling a dataset.

Imports `rewards`, `endpoint` and the folders below them, and not `training`.
"""
