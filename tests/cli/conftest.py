# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""What tests of the command share: no launcher around them, YAML files."""

import textwrap

import pytest


@pytest.fixture(autouse=True)
def one_process(monkeypatch):
    """No launcher around the tests, and no `accelerate config` of the person who runs them."""
    for name in ("LOCAL_RANK", "RANK", "WORLD_SIZE", "TRL_EXT_DEBUG"):
        monkeypatch.delenv(name, raising=False)
    from accelerate.commands.config import config_args

    monkeypatch.setattr(config_args, "default_config_file", "/nonexistent/default_config.yaml")


@pytest.fixture
def yaml_file(tmp_path):
    """A factory of YAML files: text -> path."""

    def write(text: str) -> str:
        path = tmp_path / "config.yaml"
        path.write_text(textwrap.dedent(text))
        return str(path)

    return write
