# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
An extension of griffe: docstrings in TRL's format, as mkdocstrings reads them.

- Cross-references: [`~package.module.Name`] and [`name`] become links where the name is known, code elsewhere.
- Arguments: "name (`type`, *optional*, defaults to `x`):" loses the marks that would be shown as they are.
- Notes: "> [!NOTE]" becomes an admonition.
"""

import re
from typing import Any

import griffe


_REFERENCE = re.compile(r"\[`(~?)([\w.]+?)(?:\(\))?`\](?!\()")
_ARGUMENT = re.compile(r"^(\s+)(`?\*{0,2}[\w, *]+`?) \((`.+?)\):", re.MULTILINE)
_NOTE = re.compile(r"^( *)> \[!(NOTE|TIP|WARNING|IMPORTANT)\]\n((?:^ *>.*\n?)+)", re.MULTILINE)
_GROUP = re.compile(r"^ +> [^\[\n].*\n+", re.MULTILINE)


def _reference(found: re.Match[str]) -> str:
    short, name = found[1], found[2]
    shown = name.rpartition(".")[2] if short else name
    # `optional`: names that no page documents stay code.
    return f'<autoref identifier="{name}" optional><code>{shown}</code></autoref>'


def _note(found: re.Match[str]) -> str:
    indent, kind, body = found[1], found[2].lower(), found[3]
    lines = [re.sub(r"^ *> ?", "", line) for line in body.splitlines()]
    return f"{indent}!!! {kind}\n" + "".join(f"{indent}    {line}\n" for line in lines)


def _argument(found: re.Match[str]) -> str:
    indent, name, kind = found[1], found[2].strip("`"), re.sub(r"[`*]", "", found[3])
    return f"{indent}{name} ({kind}):"


def converted(text: str) -> str:
    """A docstring in TRL's format, in the form that griffe's Google parser reads."""
    text = _NOTE.sub(_note, text)
    text = _GROUP.sub("", text)
    text = _ARGUMENT.sub(
        lambda found: f"{found[1]}{found[2].strip('`')} ({found[3].replace('`', '').replace('*', '')}):", text
    )
    return _REFERENCE.sub(_reference, text)


class TRLDocstrings(griffe.Extension):
    """Converts the docstrings of all objects."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = converted(obj.docstring.value)
