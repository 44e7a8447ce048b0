# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""What is measured about the package's speed and memory; see README.md in this folder."""
