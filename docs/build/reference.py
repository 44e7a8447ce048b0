# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
A hook of mkdocs: the pages of the reference that are made from the code, so that they cannot fall behind it.

- `reference/api/*.md`: every public name, from its docstring (see `API`).
- `reference/settings/*.md`: every setting of a method, from the docstrings of its config, with the default that the
  class has, and the class that a setting comes from.
- `reference/commands.md`: what `trl-ext COMMAND --help` prints.
"""

import dataclasses
import inspect
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import trl_ext
from trl_ext.method import discover


if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files

METHODS = discover().methods

# Pages of the API -> their names, in the order of a reader. Names of a method come from its declaration.
SHARED_NAMES = {
    "data": ("load_dataset", "to_scored_rows", "DataError"),
    "rewards": ("RewardSettings", "load_rewards", "RewardError"),
    "generation": ("GenerationSettings", "best_of_n", "Policy", "Endpoint"),
    "evaluation": ("evaluate_model",),
    "plugins": ("Method", "Decoding", "ExtConfig", "discover", "Discovery"),
}

_PARAMETER = re.compile(r"^( *)`?([\w]+)`? \((.+?)\): ?(.*)$")
_GROUP = re.compile(r"^ *> (?!\[!)(.+?)$")
_REFERENCE = re.compile(r"\[`~?([\w.]+)`\]")


def on_files(files: "Files", config: "MkDocsConfig") -> "Files":
    """Add the generated pages."""
    from mkdocs.structure.files import File  # tests import this module without mkdocs

    for target, text in {**api_pages(), **settings_pages()}.items():
        files.append(File.generated(config, target, content=text))
    return files


def api_pages() -> dict[str, str]:
    """The pages of the API, by their place on the site."""
    titles = {name: f"{found.method.name.upper().replace('_', '-')}" for name, found in METHODS.items()}
    groups = {name: tuple(found.method.class_names) for name, found in METHODS.items()} | SHARED_NAMES
    pages = {}
    for group, names in groups.items():
        blocks = "\n\n".join(block(name, group) for name in names)
        title = titles.get(group, group.capitalize())
        pages[f"reference/api/{group}.md"] = f"# {title}\n\n`from trl_ext import {', '.join(names)}`\n\n{blocks}\n"
    return pages


def block(name: str, group: str) -> str:
    """A name on a page: its docstring, or for the config of a method a link to the page of its settings."""
    if group in METHODS and METHODS[group].method.config.endswith(f":{name}"):
        summary = (inspect.getdoc(getattr(trl_ext, name)) or "").partition("\n")[0]
        summary = _REFERENCE.sub(lambda found: f"`{found[1].rpartition('.')[2]}`", summary)
        return f"## {name} {{ #{path_of(name)} }}\n\n{summary} All fields: [settings](../settings/{group}.md)."
    return f"::: {path_of(name)}"


def path_of(name: str) -> str:
    """The full path of a public name, `module.Name`."""
    value = getattr(trl_ext, name)
    return f"{value.__module__}.{value.__name__}"


def settings_pages() -> dict[str, str]:
    """A page for each method with the settings of its config class."""
    return {
        f"reference/settings/{name}.md": settings_page(found.method.name, found.method.config_class())
        for name, found in METHODS.items()
    }


def settings_page(name: str, config: type) -> str:
    """Tables of the settings of a config class, those of the most specific class first."""
    fields = {field.name: field for field in dataclasses.fields(config)}
    shown: set[str] = set()
    text = [
        f"# Settings of {config.__name__}\n",
        f"Fields of `{config.__name__}`, keys of a YAML recipe, and flags of `trl-ext {name}`. The default is that of "
        "this method. Settings of transformers' `TrainingArguments` that are not listed are taken as they are.\n",
    ]
    for owner in config.__mro__:
        if not owner.__module__.startswith("trl_ext."):
            continue
        for title, rows in groups(owner.__dict__.get("__doc__") or "", f"Settings of `{owner.__name__}`"):
            own = [(key, kind, meaning) for key, kind, meaning in rows if key in fields and key not in shown]
            shown.update(key for key, _, _ in own)
            if own:
                text.append(f"## {title} {{ #{owner.__name__.lower()}-{slug(title)} }}\n")
                text.append(table(own, config))
    return "\n".join(text)


def groups(docstring: str, title: str) -> Iterator[tuple[str, list[tuple[str, str, str]]]]:
    """
    The groups of parameters of a docstring in TRL's format: title and (name, type, meaning) of each parameter.

    `title` is that of parameters before the first title.
    """
    rows: list[tuple[str, str, str]] = []
    for line in inspect.cleandoc(docstring).partition("Parameters:")[2].splitlines():
        heading, parameter = _GROUP.match(line), _PARAMETER.match(line)
        if heading is not None and line.startswith("    "):
            if rows:
                yield title, rows
            title, rows = heading[1].replace("Parameters", "Settings").replace("parameters", "settings"), []
        elif parameter is not None and len(parameter[1]) == 4:
            rows.append((parameter[2], parameter[3].split(", *optional*")[0], parameter[4]))
        elif rows and line.startswith("        ") and line.strip():
            key, kind, meaning = rows[-1]
            rows[-1] = (key, kind, f"{meaning} {line.strip()}".strip())
    if rows:
        yield title, rows


def table(rows: list[tuple[str, str, str]], config: type) -> str:
    """A table of settings."""
    defaults = {field.name: default_of(field) for field in dataclasses.fields(config)}
    lines = ["| setting | default | meaning and source |", "|---|---|---|"]
    for key, kind, meaning in rows:
        meaning = _REFERENCE.sub(lambda found: f"`{found[1].rpartition('.')[2]}`", meaning)
        default = f"`{defaults[key]}`" if defaults[key] else ""
        lines.append(f"| `{key}`<br>{kind.replace('`', '')} | {default} | {meaning.replace('|', chr(92) + '|')} |")
    return "\n".join(lines) + "\n"


def default_of(field: dataclasses.Field[Any]) -> str:
    """The default of a field, as Python writes it; empty for `None`."""
    if field.default_factory is not dataclasses.MISSING:
        return repr(field.default_factory())
    return "" if field.default in (None, dataclasses.MISSING) else repr(field.default)


def slug(title: str) -> str:
    """An anchor for a title."""
    return re.sub(r"[^a-z]+", "-", title.lower()).strip("-")
