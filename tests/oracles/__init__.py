# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Slow and plain forms that results are compared with: loops over unpadded sequences, without caches."""
