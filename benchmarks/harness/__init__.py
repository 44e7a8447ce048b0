# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
What the suites share: timing variants in turns, experiments, result files and tables, models, and the measured code.

Imports `trl_ext` and no suite. `ppo_driver` runs without `trl_ext`, in an environment of its own.
"""
