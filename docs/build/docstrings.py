# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
An extension of griffe: docstrings in TRL's format, as mkdocstrings reads them.

- Cross-references in sentences: [`~package.module.Name`] and [`name`] become links where the name is known, and
  code elsewhere.
- Types of arguments, results and errors, which are code: "(`str` or [`~package.Name`], *optional*, defaults to
  `x`):" becomes "(str | Name):"; the default is that of the signature.
- Defaults that a config takes from [`~trl_ext.GenerationSettings`] by `setting("name")`: their values.
- Notes: "> [!NOTE]" becomes an admonition. Titles of groups of parameters are left out.
"""

import re
from typing import Any

import griffe

from trl_ext.generation_settings import GenerationSettings


_REFERENCE = re.compile(r"\[`(~?)([\w.]+?)(?:\(\))?`\](?!\()")
_NOTE = re.compile(r"^( *)> \[!(NOTE|TIP|WARNING|IMPORTANT)\]\n((?:^ *>.*\n?)+)", re.MULTILINE)
_GROUP = re.compile(r"^ +> [^\[\n].*\n+", re.MULTILINE)
_SECTION = re.compile(r"^ *(Args|Parameters|Attributes|Raises|Returns|Yields):$")
_ARGUMENT = re.compile(r"^( +)(`?\*{0,2}\w[\w, *]*`?) \(([\[`].+?)\):")
_SETTING = re.compile(r"setting\(['\"](\w+)['\"]\)")
_TYPE = re.compile(r"^( +)((?:\[?`[^`]+`\]?(?:,? or |, | of )?)+):(?= |$)")


def _reference(found: re.Match[str]) -> str:
    short, name = found[1], found[2]
    shown = name.rpartition(".")[2] if short else name
    # `optional`: names that no page documents stay code.
    return f'<autoref identifier="{name}" optional><code>{shown}</code></autoref>'


def _note(found: re.Match[str]) -> str:
    indent, kind, body = found[1], found[2].lower(), found[3]
    lines = [re.sub(r"^ *> ?", "", line) for line in body.splitlines()]
    return f"{indent}!!! {kind}\n" + "".join(f"{indent}    {line}\n" for line in lines)


def shown_type(text: str) -> str:
    """A type as it is shown: names without their packages, "|" between several, no marks, no default."""
    text = _REFERENCE.sub(lambda found: found[2].rpartition(".")[2], text.partition(", *optional*")[0])
    text = re.sub(r", (?![^\[(]*[\])])| or (?!a )", " | ", text)
    return re.sub(r"[`*]", "", text.replace(" or a ", " | "))


def _line(line: str, section: str) -> str:
    """A line of a section, with the type that it begins with."""
    if section in ("Args", "Parameters", "Attributes"):
        return _ARGUMENT.sub(lambda found: f"{found[1]}{found[2].strip('`')} ({shown_type(found[3])}):", line)
    if section:
        return _TYPE.sub(lambda found: f"{found[1]}{shown_type(found[2])}:", line)
    return line


def converted(text: str) -> str:
    """A docstring in TRL's format, in the form that griffe's Google parser reads."""
    text = _GROUP.sub("", _NOTE.sub(_note, text))
    section, lines = "", []
    for line in text.split("\n"):
        if heading := _SECTION.match(line):
            section = heading[1]
        lines.append(_line(line, section))
    return _REFERENCE.sub(_reference, "\n".join(lines))


def default(value: str) -> str:
    """The default of a field, of `setting("name")` its value."""
    found = _SETTING.fullmatch(value)
    return repr(getattr(GenerationSettings(), found[1])) if found else value


class TRLDocstrings(griffe.Extension):
    """Converts the docstrings and defaults of all objects."""

    def on_attribute_instance(self, *, attr: Any, **_: Any) -> None:
        if (value := default(str(attr.value))) != str(attr.value):
            attr.value = value

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = converted(obj.docstring.value)
