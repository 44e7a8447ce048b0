# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
Memory of a training on one device: counted operation by operation, and by a formula from the config alone.

`shape_only` and `tally` count what the tensors of a step occupy, on a CPU and at full size. `estimate` is a formula
that the tests compare with this count, from what `inventory` finds in a model without weights and what a method
declares in its `needs`. `fitting` looks for the settings with which a training fits a card.

Imports `generation` and what is below. Trainers and the command line import it.
"""
