# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
A hook of mkdocs: `reference/messages.md`, every error and warning of the package, from its code.

Messages say what is wrong and what to do, so the page is found by searching for the text of an error.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple


if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files

PACKAGE = Path(__file__).resolve().parents[2] / "trl_ext"
GAP = "..."  # what a message names: a placeholder of an f-string

# Folders and modules of the package, as far as they need another title than their name -> the title of their messages.
TITLES = {
    "cli": "Commands",
    "data": "Data",
    "decoding": "CUDA-graph decoding and candidate tokens",
    "endpoint": "OpenAI-compatible servers",
    "evaluation": "Evaluation",
    "generation": "Generation",
    "inference": "Generation by commands, best-of-n",
    "logprobs": "Log-probabilities",
    "memory": "Memory",
    "methods/proxy_rlhf": "Proxy-RLHF",
    "methods/psle": "PSLE",
    "methods/rrhf": "RRHF",
    "methods/vas": "VAS",
    "models": "Models, adapters and tokenizers",
    "playground": "The playground",
    "rewards": "Rewards",
    "training": "Training, for all methods",
}
_OTHERS = "Plug-ins and settings"
_NOT_FOR_USERS = ("AssertionError", "NotImplementedError", "AttributeError")
# Characters that Markdown would read, outside of code.
_SPECIAL = re.compile(r"([\\*_<>\[\]{}$#|])")


class Message(NamedTuple):
    """A message: its error class, or `"warning"`; empty if the code computes the class."""

    area: str
    kind: str
    text: str


def on_files(files: "Files", config: "MkDocsConfig") -> "Files":
    """Add the page."""
    from mkdocs.structure.files import File  # tests import this module without mkdocs

    files.append(File.generated(config, "reference/messages.md", content=page()))
    return files


def page() -> str:
    """The page, a section for each part of the package."""
    text = [
        "# All errors and warnings",
        "Every message of the package, from its code; `...` is what a message names. Those that most people meet are "
        "explained on the page of [errors](errors.md).",
    ]
    found = sorted(set(messages()), key=lambda message: message.text.lower().lstrip("`.:- "))
    for title in [*TITLES.values(), _OTHERS]:
        lines = [f"- {marked(message.text)}{kind(message.kind)}" for message in found if message.area == title]
        if lines:
            text.append(f"## {title}\n\n" + "\n".join(lines))
    return "\n\n".join(text) + "\n"


def kind(name: str) -> str:
    """The class of an error, or that it is a warning, behind the message."""
    return f" *{name}*" if name else ""


def marked(text: str) -> str:
    """A message as Markdown: what is in backticks is code, all else is text."""
    parts = text.split("`")
    if len(parts) % 2 == 0:  # a backtick without its other
        return _escaped(text.replace("`", "'"))
    for n, part in enumerate(parts):
        between_backticks = n % 2 == 1
        if not between_backticks:
            parts[n] = _escaped(part)
        elif part:
            parts[n] = f"`{part}`"
    return "".join(parts)


def _escaped(text: str) -> str:
    """Text in which Markdown reads no character as a mark."""
    return _SPECIAL.sub(r"\\\1", text)


def messages() -> Iterator[Message]:
    """The errors that the package raises and the warnings that it logs."""
    for file in sorted(PACKAGE.rglob("*.py")):
        name = file.relative_to(PACKAGE).as_posix()
        area = next((title for folder, title in TITLES.items() if name.startswith(f"{folder}/")), _OTHERS)
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
                raised = ast.unparse(node.exc.func)
                kind = raised if raised[:1].isupper() else ""
                text = " ".join(text_of(argument) for argument in node.exc.args)
            elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith((".warning", ".warning_once")):
                kind, text = "warning", text_of(node.args[0]) if node.args else ""
            else:
                continue
            text = re.sub(r"(\.\.\.)+", GAP, " ".join(text.split()))
            words = re.sub(r"\(see .*\)$", "", text.replace(GAP, "")).split()
            if kind not in _NOT_FOR_USERS and len(words) > 2:
                yield Message(area, kind, re.sub(r"%(\.\w+)?[drs]", GAP, text) if kind == "warning" else text)


def text_of(node: ast.AST) -> str:
    """The text of a string expression."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else ""
    if isinstance(node, ast.JoinedStr):
        return "".join(part.value if isinstance(part, ast.Constant) else GAP for part in node.values)
    if isinstance(node, ast.BinOp):
        return text_of(node.left) + text_of(node.right)
    return ""
