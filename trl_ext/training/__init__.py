# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""What every trainer shares: the base trainer and config, rollouts, checkpoints, metrics and reference models.

Imports `rewards`, `endpoint` and the folders below them, and not `inference`.
"""
