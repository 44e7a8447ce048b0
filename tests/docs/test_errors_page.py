# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""docs/reference/errors.md quotes messages that the code has, and docs/build/messages.py finds them all."""

import ast
import re
from collections.abc import Iterator

import pytest
from conftest import REPOSITORY
from docs_build import hook


PAGE = REPOSITORY / "docs" / "reference" / "errors.md"
_QUOTED = re.compile(r"\*\*(`+)(.+?)\1\*\*")


def quoted() -> list[str]:
    """The messages of the page."""
    return [found[2].strip() for found in _QUOTED.finditer(PAGE.read_text(encoding="utf-8"))]


def texts() -> Iterator[str]:
    """All texts of the package, without its docstrings."""
    for file in (REPOSITORY / "trl_ext").rglob("*.py"):
        nodes = list(ast.walk(ast.parse(file.read_text(encoding="utf-8"))))
        docstrings = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
        for node in nodes:
            if id(node) not in docstrings and (text := hook("messages").text_of(node)):
                yield " ".join(text.split())


@pytest.fixture(scope="module")
def source() -> str:
    return "\n".join(texts())


def test_the_page_quotes_errors():
    assert len(quoted()) > 60 and len(set(quoted())) == len(quoted())


@pytest.mark.parametrize("message", quoted())
def test_the_message_is_in_the_code(message, source):
    parts = [re.escape(part.strip()) for part in message.split("...") if part.strip(" `")]
    assert re.search("[^\n]*".join(parts), source), "no message has these parts in this order"


def test_all_errors_and_warnings_are_found():
    found = list(hook("messages").messages())
    assert len(found) > 450
    assert {"DataError", "RewardError", "NonFiniteLossError", "EndpointUnreachable", "warning"} <= {
        m.kind for m in found
    }
    page = hook("messages").page()
    assert "\n- There is no file or directory .... *DataError*\n" in page
    assert "\n- `resample_steps` (OP-k) and `resample_epochs` (IP-n) exclude each other; set one" in page
    areas = {message.area for message in found}
    assert all(f"\n## {area}\n" in page for area in areas)


@pytest.mark.parametrize(
    ("text", "marked"),
    [("a * b of `c_d` in [x]", r"a \* b of `c_d` in \[x\]"), ("a lone ` and $1", r"a lone ' and \$1")],
)
def test_messages_as_markdown(text, marked):
    assert hook("messages").marked(text) == marked
