# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""`python -m trl_ext.cli` is the command `trl-ext`."""

import sys

from .main import main


if __name__ == "__main__":
    sys.exit(main())
