# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""`python -m benchmarks.gpu_day`; see day.py."""

import sys

from .day import main


if __name__ == "__main__":
    sys.exit(main())
