# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""`trl-ext chat`: `trl-ext generate` with a running conversation."""

from . import generate as cli_generate


def main(argv: list[str]) -> int:
    """`trl-ext chat`. See [`~trl_ext.cli.generate.main`]."""
    return cli_generate.main(argv, chat=True)
