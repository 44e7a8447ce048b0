# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""What the methods reach, and the package's speed and memory; see README.md in this folder."""

import os


# Before torch is imported. One thread, so that the CPU time of the process is the time of the work on a machine that
# does other things too; nothing here needs a hub.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
