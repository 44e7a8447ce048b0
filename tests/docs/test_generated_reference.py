# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""The pages that docs/build/reference.py makes from the code are complete."""

import dataclasses
import re
from collections import Counter

import pytest
import transformers
import yaml
from conftest import REPOSITORY
from docs_build import hook

import trl_ext
from trl_ext.commands import COMMANDS
from trl_ext.method import discover
from trl_ext.plugins import OWN_PACKAGE


reference = hook("reference")
METHODS = {name: found.method for name, found in discover().methods.items() if found.package == OWN_PACKAGE}


def headings(page: str) -> list[str]:
    """The titles of a page, without their anchors."""
    text = re.sub(r"^ *```.*?^ *```", "", page, flags=re.DOTALL | re.MULTILINE)
    return [re.sub(r" \{.*\}$", "", title) for title in re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)]


def test_every_public_name_is_on_one_page():
    public = {*trl_ext.__all__, *(name for method in METHODS.values() for name in method.class_names)}
    shown = Counter(name for names in reference.api_names().values() for name in names)
    assert set(shown) == public and set(shown.values()) == {1}
    text = "\n".join(reference.api_pages().values())
    for name in public:
        assert re.search(rf"^(## {name} |::: \S+\.{name}$)", text, flags=re.MULTILINE), name


@pytest.mark.parametrize("name", METHODS)
def test_every_setting_has_a_meaning_and_its_default(name):
    config = METHODS[name].config_class()
    page = reference.settings_pages()[f"reference/settings/{name}.md"]
    assert len(set(headings(page))) == len(headings(page)), "two titles are the same"
    entries = re.findall(
        r"^#### `(\w+)` \{ #\1 \}\n\n\*.+, default (.+)\*\{ .default \}<br>\n(.+)", page, re.MULTILINE
    )
    shown = {key: default.partition(" (")[0] for key, default, meaning in entries if len(meaning) > 15}
    theirs = {field.name: field for field in dataclasses.fields(transformers.TrainingArguments)}
    for field in dataclasses.fields(config):
        default = reference.default_of(field)
        if field.name not in theirs:
            assert field.name in shown, f"{field.name} has no entry"
        elif default != reference.default_of(theirs[field.name]):
            assert re.search(rf"^\| \S*`{field.name}`.* \| {re.escape(default)} \|", page, re.MULTILINE), field.name
        assert field.name not in shown or shown[field.name] == default


def test_refused_settings_are_no_fields():
    page = reference.settings_pages()["reference/settings/proxy_rlhf.md"]
    assert "`loss_type`: a setting of DPO's or GRPO's loss" in page
    assert "`entropy_coef`, " not in page.partition("## Settings of TRL that are refused")[2]


def test_groups_of_a_docstring():
    found = list(
        reference.groups(
            """
            Of a plug-in.

            Parameters:
                first (`int`, *optional*, defaults to `1`):
                    One line,
                    and another.

                > Parameters that control the loss (in nats)

                second (`float`): All in one line.

            Example: not read.
            """,
            "Own",
        )
    )
    assert found == [("Own", "", [("first", "`int`", "One line, and another.")]),
                     ("The loss", "In nats.", [("second", "`float`", "All in one line.")])]  # fmt: skip


def test_every_command_has_its_help():
    page = reference.commands_page()
    names = [title.removeprefix("trl-ext ") for title in headings(page)[1:]]
    assert sorted(names) == sorted([*METHODS, *COMMANDS])
    for name in names:
        section = page.partition(f"## trl-ext {name}\n")[2].partition("\n## ")[0]
        printed = section.partition("```text")[2]
        assert f"trl-ext {name}" in printed or f"trl-ext {name.replace('_', '-')}" in printed, name
    assert "--length_penalty" in page and "--guide_top_k" in page


def test_the_pages_are_in_the_navigation():
    text = re.sub(r"!!python\S+", "", (REPOSITORY / "mkdocs.yml").read_text(encoding="utf-8"))
    pages = set(re.findall(r"[\w/]+\.(?:md|ipynb)", str(yaml.safe_load(text)["nav"])))
    assert reference.targets() <= pages
    assert reference.targets() == {*reference.api_pages(), *reference.settings_pages(), "reference/commands.md"}
