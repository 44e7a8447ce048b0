# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Generation after training: policies (models, guided models, servers), best-of-n, sampling for a dataset.

Imports `rewards`, `endpoint` and the folders below them, and not `training`.
"""
