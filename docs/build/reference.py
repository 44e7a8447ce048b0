# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
A hook of mkdocs: the pages of the reference that are made from the code, so that they cannot fall behind it.

- `reference/api/*.md`: every public name, from its docstring (see `SHARED_NAMES`).
- `reference/settings/*.md`: every setting of a method, from the docstrings of its config, with the default that the
  class has.
- `reference/commands.md`: what `trl-ext COMMAND --help` prints.
"""

import contextlib
import dataclasses
import inspect
import io
import os
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple
from unittest import mock

import transformers

import trl_ext
from trl_ext.cli.main import main
from trl_ext.commands import COMMANDS, TRL_COMMANDS
from trl_ext.method import discover
from trl_ext.plugins import OWN_PACKAGE


if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files

METHODS = {name: found.method for name, found in discover().methods.items() if found.package == OWN_PACKAGE}
TITLES = {"proxy_rlhf": "Proxy-RLHF", "psle": "PSLE", "rrhf": "RRHF", "vas": "VAS"}

# Pages of the API -> their names, in the order of a reader. Names of a method come from its declaration.
SHARED_NAMES = {
    "data": ("load_dataset", "to_scored_rows", "from_scored_rows", "DataError"),
    "rewards": ("RewardSettings", "load_rewards", "RewardError"),
    "generation": ("GenerationSettings", "best_of_n", "Policy", "Endpoint"),
    "guides": (
        "GuidedLogitsProcessor",
        "Guide",
        "GuideContext",
        "ClassifierGuide",
        "LanguageModelGuide",
        "GuideSettings",
        "policy_with_guides",
    ),
    "evaluation": (
        "evaluate_model",
        "judge",
        "JudgeResult",
        "ColumnJudge",
        "RewardJudge",
        "FunctionJudge",
        "EndpointJudge",
    ),
    "plugins": ("Method", "Decoding", "ExtConfig", "discover", "Discovery"),
}

# Titles of the settings of classes whose docstrings have no groups.
UNGROUPED = {
    "EngineConfig": "Completions that training generates",
    "RewardSettings": "How rewards are called",
    "VLLMSettings": "Generation with vLLM",
}

_PARAMETER = re.compile(r"^    (\w+) \((.+?)\): ?(.*)$")
_GROUP = re.compile(r"^    > (?!\[!)(.+?)$")
_REFERENCE = re.compile(r"\[`~?([\w.]+)`\]")
_WIDTH = "80"  # of the terminal that help is printed for


class Setting(NamedTuple):
    """A documented setting: its name, type and meaning."""

    name: str
    kind: str
    meaning: str


class Group(NamedTuple):
    """Settings under a title, and what the title says in brackets."""

    title: str
    note: str
    settings: list[Setting]


def on_files(files: "Files", config: "MkDocsConfig") -> "Files":
    """Add the generated pages."""
    from mkdocs.structure.files import File  # tests import this module without mkdocs

    for target, text in {**api_pages(), **settings_pages(), "reference/commands.md": commands_page()}.items():
        files.append(File.generated(config, target, content=text))
    return files


def targets() -> set[str]:
    """Where the site has generated pages."""
    pages = {f"api/{name}" for name in (*METHODS, *SHARED_NAMES)} | {f"settings/{name}" for name in METHODS}
    return {f"reference/{page}.md" for page in (*pages, "commands")}


# ------------------------------------------------------------------------------------------------------ public names


def api_names() -> dict[str, tuple[str, ...]]:
    """The names of each page of the API."""
    return {name: tuple(method.class_names) for name, method in METHODS.items()} | SHARED_NAMES


def api_pages() -> dict[str, str]:
    """The pages of the API, by their place on the site."""
    pages = {}
    for group, names in api_names().items():
        title = TITLES.get(group, "Plug-ins" if group == "plugins" else group.capitalize())
        blocks = "\n\n".join(block(name, group) for name in names)
        pages[f"reference/api/{group}.md"] = f"# Python: {title}\n\n```python\n{import_of(names)}\n```\n\n{blocks}\n"
    return pages


def import_of(names: tuple[str, ...]) -> str:
    """The line, or lines, that import names."""
    line = f"from trl_ext import {', '.join(names)}"
    if len(line) <= 80:
        return line
    return "\n".join(["from trl_ext import (", *(f"    {name}," for name in names), ")"])


def block(name: str, group: str) -> str:
    """A name on a page: its docstring; a link for the config of a method, or for another name of one class."""
    value = getattr(trl_ext, name)
    path = f"{value.__module__}.{name}"
    if value.__name__ != name:
        return (
            f"## {name} {{ #{path} }}\n\nAnother name of [`{value.__name__}`](#{value.__module__}.{value.__name__})."
        )
    if group in METHODS and METHODS[group].config.endswith(f":{name}"):
        summary = plain((inspect.getdoc(value) or "").partition("\n")[0])
        return f"## {name} {{ #{path} }}\n\n{summary} All fields: [settings](../settings/{group}.md)."
    return f"::: {path}"


# ---------------------------------------------------------------------------------------------------------- settings


def settings_pages() -> dict[str, str]:
    """A page for each method with the settings of its config class."""
    return {
        f"reference/settings/{name}.md": settings_page(name, method.config_class()) for name, method in METHODS.items()
    }


def settings_page(name: str, config: type) -> str:
    """The settings of a config class: the method's own, those that methods share, and what differs from TRL."""
    text = [
        f"# Settings of {TITLES.get(name, name)}",
        f"Fields of `{config.__name__}`, keys of a YAML recipe and flags of [`trl-ext {name}`](../commands.md). Those "
        "of transformers' [`TrainingArguments`](https://huggingface.co/docs/transformers/main_classes/trainer) that "
        "are not here have the meaning and the default that they have there.",
    ]
    shown: set[str] = set()
    for title, is_own in (
        (f"Settings of {TITLES.get(name, name)} alone", True),
        ("Settings that methods share", False),
    ):
        text.append(f"## {title}")
        for group in groups_of(config, is_own):
            settings = [setting for setting in group.settings if setting.name not in shown]
            shown.update(setting.name for setting in settings)
            if settings:
                text += [f"### {group.title}", *([f"{group.note}"] if group.note else [])]
                text += [entry(setting, config) for setting in settings]
    text += ["## Defaults that differ from transformers'", defaults_table(config, shown)]
    text += ["## Settings of TRL that are refused", refused_settings(config)]
    return "\n\n".join(text) + "\n"


def groups_of(config: type, is_own: bool) -> Iterator[Group]:
    """The groups of settings of the method's classes, or of the classes that methods share."""
    package = config.__module__.rpartition(".")[0]
    for owner in config.__mro__:
        if owner.__module__.startswith("trl_ext.") and owner.__module__.startswith(f"{package}.") == is_own:
            yield from groups(owner.__dict__.get("__doc__") or "", UNGROUPED.get(owner.__name__, owner.__name__))


def groups(docstring: str, title: str) -> Iterator[Group]:
    """
    The groups of parameters of a docstring in TRL's format.

    `title` is that of parameters before the first title.
    """
    group = Group(title, "", [])
    for line in inspect.cleandoc(docstring).partition("Parameters:")[2].splitlines():
        heading, parameter = _GROUP.match(line), _PARAMETER.match(line)
        if heading is not None:
            if group.settings:
                yield group
            group = Group(*titled(heading[1]), [])
        elif parameter is not None:
            group.settings.append(Setting(parameter[1], parameter[2].split(", *optional*")[0], parameter[3]))
        elif group.settings and line.startswith("        "):
            name, kind, meaning = group.settings[-1]
            group.settings[-1] = Setting(name, kind, f"{meaning} {line.strip()}".strip())
    if group.settings:
        yield group


def titled(heading: str) -> tuple[str, str]:
    """The title of a group of parameters, and what it has in brackets or behind a semicolon, as a sentence."""
    short = re.sub(r"^Parameters (that control )?", "", heading)
    title, _, note = re.sub(r"[;(]", "|", short.rstrip(")"), count=1).partition("|")
    title = {"whose defaults differ": "Defaults of this method"}.get(title, title.strip())
    return title[0].upper() + title[1:], f"{note.strip()[:1].upper()}{note.strip()[1:]}." if note else ""


def entry(setting: Setting, config: type) -> str:
    """A setting with an anchor of its name."""
    field = fields_of(config)[setting.name]
    theirs = fields_of(transformers.TrainingArguments).get(setting.name)
    meaning = setting.meaning
    if len(meaning) < (25 if theirs is None else 60):  # such as "The paper's value."
        meaning = f"{field.metadata.get('help', '')} {meaning}"
    differs = theirs is not None and default_of(field) != default_of(theirs)
    default = f"default {default_of(field)}" + (f" (transformers: {default_of(theirs)})" if differs and theirs else "")
    kind = setting.kind.replace("`", "")
    return f"#### `{setting.name}` {{ #{setting.name} }}\n\n*{kind}, {default}*{{ .default }}<br>\n{plain(meaning)}"


def defaults_table(config: type, shown: set[str]) -> str:
    """All settings of transformers with another default here."""
    lines = ["| setting | here | transformers |", "|---|---|---|"]
    theirs = fields_of(transformers.TrainingArguments)
    for name, field in fields_of(config).items():
        if name in theirs and default_of(field) != default_of(theirs[name]):
            key = f"[`{name}`](#{name})" if name in shown else f"`{name}` (TRL's default)"
            lines.append(f"| {key} | {default_of(field)} | {default_of(theirs[name])} |")
    return "\n".join(lines)


def refused_settings(config: Any) -> str:
    """Names of TRL's settings that are errors here, by reason, and settings that take only some values."""
    absent = {name: why for name, why in config.refused_settings.items() if name not in fields_of(config)}
    restricted = {name: why for name, (_, why) in config.restricted_settings.items()}
    return "\n\n".join(
        [
            "Each is an error with this reason when the config is made, in Python, YAML and on the command line.",
            reasons_list(absent),
            "Settings of which only some values are taken:",
            reasons_list(restricted),
        ]
    )


def reasons_list(reasons: Mapping[str, str]) -> str:
    """A list of the names that have a reason, and the reason."""
    lines = []
    for names, reason in by_reason(reasons).items():
        lines.append(f"- {', '.join(f'`{name}`' for name in names)}: {reason}.")
    return "\n".join(lines)


def by_reason(reasons: Mapping[str, str]) -> dict[tuple[str, ...], str]:
    """Names that have the same reason together."""
    found: dict[str, tuple[str, ...]] = {}
    for name, reason in reasons.items():
        found[reason] = (*found.get(reason, ()), name)
    return {names: reason for reason, names in found.items()}


def fields_of(config: Any) -> dict[str, dataclasses.Field[Any]]:
    """The fields of a dataclass, by name."""
    return {field.name: field for field in dataclasses.fields(config)}


def default_of(field: dataclasses.Field[Any]) -> str:
    """The default of a field, as Python writes it."""
    value = field.default
    if field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
    return "none" if value in (None, dataclasses.MISSING) else f"`{getattr(value, 'value', value)!r}`"


def plain(text: str) -> str:
    """A docstring's cross-references as code."""
    return _REFERENCE.sub(lambda found: f"`{found[1].rpartition('.')[2]}`", text)


# ---------------------------------------------------------------------------------------------------------- commands


def commands_page() -> str:
    """Every command and method with its help."""
    methods = {name: sentence(method.summary) for name, method in METHODS.items()}
    commands = {name: sentence(command.summary) for name, command in COMMANDS.items()}
    text = [
        "# Commands",
        "`trl-ext COMMAND --config FILE.yaml --SETTING VALUE`. Every flag is also a key of the YAML file, and a flag "
        "wins over the file. What a command cannot do, it says in one line and ends with status 2; after Ctrl-C the "
        "status is 130. `TRL_EXT_DEBUG=1` shows the traceback of an error.",
        "\n".join(["| command | what it does |", "|---|---|", *summaries(methods), *summaries(commands)]),
        f"TRL's own commands ({', '.join(f'`{name}`' for name in TRL_COMMANDS)}) are those of `trl`: `trl-ext dpo` "
        "says so.",
        "Below is what `--help` prints; it opens with a click. For a method, `--help_all` adds all settings of TRL "
        "and transformers.",
    ]
    for name in (*methods, *commands):
        text.append(f"## trl-ext {name}\n\n{(methods | commands)[name]}\n\n{folded(help_of(name), name)}")
    return "\n\n".join(text) + "\n"


def sentence(summary: str) -> str:
    """A summary with a capital and a full stop."""
    return f"{summary[:1].upper()}{summary[1:].rstrip('.')}."


def folded(text: str, name: str) -> str:
    """The help of a command as a block that opens."""
    block = "\n".join(f"    {line}" if line else "" for line in ["```text", *text.splitlines(), "```"])
    return f'??? abstract "trl-ext {name} --help"\n\n{block}'


def summaries(commands: Mapping[str, str]) -> list[str]:
    """Rows of a table of commands."""
    return [f"| [`{name}`](#trl-ext-{name}) | {summary} |" for name, summary in commands.items()]


def help_of(name: str) -> str:
    """What a command prints for `--help`."""
    printed = io.StringIO()
    with (
        mock.patch.dict(os.environ, COLUMNS=_WIDTH),
        contextlib.redirect_stdout(printed),
        contextlib.suppress(SystemExit),
    ):
        main([name, "--help"])
    return printed.getvalue().strip()
