# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""docs/reference/errors.md quotes messages that the code has."""

import ast
import re
from collections.abc import Iterator

import pytest
from conftest import REPOSITORY


PAGE = REPOSITORY / "docs" / "reference" / "errors.md"
_QUOTED = re.compile(r"\*\*(`+)(.+?)\1\*\*")
_GAP = "\0"  # a placeholder of an f-string


def quoted() -> list[str]:
    """The messages of the page."""
    return [found[2].strip() for found in _QUOTED.finditer(PAGE.read_text(encoding="utf-8"))]


def text_of(node: ast.AST) -> str:
    """The text of a string expression; placeholders are gaps."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else ""
    if isinstance(node, ast.JoinedStr):
        return "".join(part.value if isinstance(part, ast.Constant) else _GAP for part in node.values)
    if isinstance(node, ast.BinOp):
        return text_of(node.left) + text_of(node.right)
    return ""


def texts() -> Iterator[str]:
    """All texts of the package, without its docstrings."""
    for file in (REPOSITORY / "trl_ext").rglob("*.py"):
        nodes = list(ast.walk(ast.parse(file.read_text(encoding="utf-8"))))
        docstrings = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
        for node in nodes:
            if id(node) not in docstrings and (text := text_of(node)):
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
