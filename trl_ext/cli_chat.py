# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""`trl-ext chat`: `trl-ext generate` with a running conversation."""

from . import cli_generate


def main(argv: list[str]) -> int:
    """`trl-ext chat`. See [`~trl_ext.cli_generate.main`]."""
    return cli_generate.main(argv, chat=True)
