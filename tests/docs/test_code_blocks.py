# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0
"""
Code on the pages of the repository is right, as far as a check can find out without running it.

Python compiles, and what it imports and passes exists; commands and flags are those of their parsers, with values that
these take; YAML and JSON are read, and the keys of recipes are settings.
"""

import argparse
import ast
import functools
import importlib
import inspect
import json
import re
import shlex
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import REPOSITORY
from pages import DOCUMENTS, Block, blocks, inline_code

import trl_ext
from trl_ext.cli.config_file import split_config
from trl_ext.cli.parser import Parser
from trl_ext.cli.required import check_words
from trl_ext.commands import COMMANDS
from trl_ext.method import discover
from trl_ext.plugins import canonical
from trl_ext.upstream import parser_actions


# Packages whose names are looked up; what a page imports from others is its example's.
PACKAGES = ("trl_ext", "trl", "transformers", "peft", "datasets", "accelerate")
# `trl-ext METHOD`, `trl-ext <method>` and the method that a contributor adds.
PLACEHOLDER = re.compile(r"[A-Z_]+|<.*|my_\w+|\.\.\.")
RECIPE = re.compile(r"(?:#.*\n)*?#.*\btrl-ext (\w+)")


def of_pages(*languages: str) -> list[Block]:
    return [block for page in DOCUMENTS for block in blocks(page, *languages)]


# ----------------------------------------------------------------------------------------------------------- Python


def check_python(text: str) -> None:
    """Compile, look up what is imported from `PACKAGES`, and compare the arguments of calls with signatures."""
    tree = ast.parse(text)
    names = dict(imported(tree))
    instances = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call) and isinstance(node.targets[0], ast.Name):
            made = resolved(node.value.func, names, {})
            if inspect.isclass(made):
                instances[node.targets[0].id] = made
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            check_call(node, resolved(node.func, names, instances))


def imported(tree: ast.AST) -> Iterator[tuple[str, Any]]:
    """The names that a block imports from `PACKAGES`, with their values."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in PACKAGES:
            module = importlib.import_module(str(node.module))
            for each in node.names:
                assert hasattr(module, each.name), f"{node.module} has no {each.name}"
                yield each.asname or each.name, getattr(module, each.name)
        if isinstance(node, ast.Import):
            for each in node.names:
                if each.name.partition(".")[0] in PACKAGES:
                    module = importlib.import_module(each.name)
                    root = importlib.import_module(each.name.partition(".")[0])
                    yield (each.asname, module) if each.asname else (each.name.partition(".")[0], root)


def resolved(node: ast.expr, names: dict[str, Any], instances: dict[str, type]) -> Any:
    """What an expression refers to, if it is a public name, an attribute of one, or a method of an object of one."""
    if isinstance(node, ast.Name):
        if node.id in names:
            return names[node.id]
        return getattr(trl_ext, node.id) if node.id in dir(trl_ext) else None  # an excerpt, without its imports
    if not isinstance(node, ast.Attribute):
        return None
    if isinstance(node.value, ast.Name) and node.value.id in instances:
        found = getattr(instances[node.value.id], node.attr, None)
        return functools.partial(found, None) if inspect.isfunction(found) else found
    owner = resolved(node.value, names, instances)
    if owner is None:
        return None
    assert hasattr(owner, node.attr), f"{ast.unparse(node.value)} has no {node.attr}"
    return getattr(owner, node.attr)


def check_call(call: ast.Call, function: Any) -> None:
    """Raise an error if a call has arguments that its function does not take."""
    if not callable(function):
        return
    try:  # a config has `__new__(cls, *args, **kwargs)`
        parameters = inspect.signature(function.__init__ if inspect.isclass(function) else function)
    except ValueError:  # a function in C
        return
    positional = [None] * sum(not isinstance(each, ast.Starred) for each in call.args)
    keywords = {each.arg: None for each in call.keywords if each.arg is not None}
    try:
        parameters.bind_partial(*([None] if inspect.isclass(function) else []), *positional, **keywords)
    except TypeError as error:
        raise AssertionError(f"{ast.unparse(call.func)}: {error}") from None


@pytest.mark.parametrize("block", of_pages("python"), ids=str)
def test_python(block: Block) -> None:
    check_python(block.text)


# --------------------------------------------------------------------------------------------------------- commands


def commands_in(text: str, program: str = "trl-ext") -> Iterator[list[str]]:
    """The words after the program's name of each such command in a script."""
    text = re.sub(r"(^|\s)#.*", "", text.replace("\\\n", " "))
    lexer = shlex.shlex(text, posix=True, punctuation_chars="();<>|&\n")
    lexer.whitespace, lexer.whitespace_split, lexer.commenters = " \t\r", True, ""
    words: list[str] = []
    for word in [*lexer, "\n"]:
        if not set(word) <= set("();<>|&\n"):
            words.append(word)
            continue
        if program in words and words[0] != "pip":
            yield words[words.index(program) + 1 :]
        words = []


def check_command(words: list[str], check_flags: Callable[[str, list[str]], None]) -> None:
    """Raise an error if the first word is no command or method, or the others are not its flags."""
    name, *rest = words or ["--help"]
    if name in ("--help", "-h", "--version", "-V") or PLACEHOLDER.fullmatch(name):
        return
    if name == "help":
        name, rest = rest[0], []
    name = canonical(name)
    assert name in COMMANDS or name in discover().methods, f"trl-ext has no command or method {name}"
    if name == "quickstart" and rest:
        name, rest = rest[0], ["--config", f"{rest[0]}.yaml", *rest[1:]]
    if not {"--help", "-h", "--help_all"} & set(rest):
        check_flags(name, rest)


def make_parser(name: str) -> Any:
    """The parser of a command or a method; `None` for a command without settings."""
    if name not in COMMANDS:
        from trl_ext.cli.train import make_parser as of_method

        return of_method(discover().methods[name].method)
    if not COMMANDS[name].parser:
        return None
    module, function = COMMANDS[name].parser.split(":")
    return getattr(importlib.import_module(f"trl_ext.cli.{module}"), function)(f"trl-ext {name}")


parser_of = functools.cache(make_parser)


def check_values(name: str, words: list[str]) -> None:
    """Parse all words of a command as it does, and look for what it requires."""
    recipe, flags = split_config(words)
    if not recipe:  # which may have it
        check_words(name, flags)
    check_parsed(name, flags)


def check_parsed(name: str, flags: list[str]) -> None:
    """Parse flags, other than `--config`."""
    parser = parser_of(name)
    if isinstance(parser, Parser):
        parser.parse_flags(flags)
    elif parser is not None:
        own, rest = parser.parse_known_args(flags)
        if name == "plan":  # its other flags are those of the training
            check_parsed(canonical(own.method), rest)
        else:
            assert not rest, f"trl-ext {name} takes no {' '.join(rest)}"


def check_names(name: str, words: list[str]) -> None:
    """Look up the flags of a command that a sentence mentions, without their values."""
    flags = [word.partition("=")[0] for word in words if word.startswith("--")]
    parser = parser_of(name)
    known = {flag for action in parser_actions(parser) for flag in action.option_strings} if parser else set()
    unknown = [] if name == "plan" else [flag for flag in flags if flag not in {"--config", *known}]
    assert not unknown or parser is None, f"trl-ext {name} has no {', '.join(unknown)}"


@pytest.mark.parametrize(
    "block", [block for block in of_pages("bash", "console", "sh") if "trl-ext " in block.text], ids=str
)
def test_commands(block: Block) -> None:
    for words in commands_in(block.text):
        check_command(words, check_values)


@pytest.mark.parametrize("block", [block for block in of_pages("bash") if "hf upload " in block.text], ids=str)
def test_uploads(block: Block) -> None:
    """As `hf upload --help` has them: at most three words, and a flag again for each further value of a list."""
    parser = argparse.ArgumentParser("hf upload", exit_on_error=False)
    parser.add_argument("repo_id")
    parser.add_argument("paths", nargs="*")
    parser.add_argument("--repo-type", choices=["model", "dataset"])
    parser.add_argument("--exclude", action="append")
    for command, *words in commands_in(block.text, "hf"):
        if command == "upload":
            flags, more = parser.parse_known_args(words)
            assert not more and len(flags.paths) <= 2, words


@pytest.mark.parametrize(
    "page",
    [page for page in DOCUMENTS if page.name != "CHANGELOG.md"],  # whose commands are those of its time
    ids=lambda page: str(page.relative_to(REPOSITORY)),
)
def test_commands_in_sentences(page: Path) -> None:
    for code in inline_code(page):
        if code.text.startswith("trl-ext "):
            for words in commands_in(code.text):
                check_command(words, check_names)


# ------------------------------------------------------------------------------------------------------------- data


def check_yaml(text: str, folder: Path) -> None:
    """Read YAML; parse a recipe, whose first comment names its command, and build its configs if it is complete."""
    settings = yaml.safe_load(text)
    found = RECIPE.match(text)
    if found is None or PLACEHOLDER.fullmatch(found[1]):
        return
    file = folder / "recipe.yaml"
    file.write_text(text)
    parser = make_parser(found[1])  # reading a recipe changes the defaults of its parser
    flags = parser.parse_flags(["--config", str(file)])
    if {"model_name_or_path", "dataset_name"} <= set(settings):
        parser.build(flags)


@pytest.mark.parametrize("block", of_pages("yaml", "yml"), ids=str)
def test_yaml(block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    check_yaml(block.text, tmp_path)


@pytest.mark.parametrize("block", of_pages("json", "jsonl", "toml"), ids=str)
def test_json_and_toml(block: Block) -> None:
    if block.language == "toml":
        tomllib.loads(block.text)
        return
    try:
        json.loads(block.text)
    except json.JSONDecodeError:  # rows
        for line in block.text.splitlines():
            json.loads(line)


# ------------------------------------------------------------------------------------------- the checks themselves


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("def f(:", "invalid syntax"),
        ("from trl_ext import RRHFTrainr", "has no RRHFTrainr"),
        ("from trl_ext.rewards.functions import nothing", "has no nothing"),
        ("from trl_ext import RRHFConfig\nRRHFConfig(output_dir='a', learning_rat=1)", "'learning_rat'"),
        ("args = RRHFConfig('a', learning_rat=1)", "'learning_rat'"),
        ("RRHFTrainer(model, arguments=1)", "'arguments'"),
        ("import trl\ntrl.DPOConfig(beta_=1)", "'beta_'"),
        ("import trl_ext\ntrl_ext.no_such_thing()", "no_such_thing"),
        ("trainer = RRHFTrainer(model)\ntrainer.save_model(folder='a')", "'folder'"),
    ],
)
def test_wrong_python_is_found(text: str, problem: str) -> None:
    with pytest.raises((SyntaxError, AssertionError), match=problem):
        check_python(text)


def test_right_python_passes() -> None:
    check_python(
        "import my_package\nfrom trl_ext import RRHFConfig, RRHFTrainer\n"
        "trainer = RRHFTrainer('m', args=RRHFConfig('a', learning_rate=1.0), train_dataset=rows, **more)\n"
        "trainer.train(resume_from_checkpoint=True)\nmy_package.anything(x=1)"
    )


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("trl-ext rrhff --output_dir a", "no command or method rrhff"),
        ("OMP_NUM_THREADS=1 trl-ext rrhf --config a.yaml \\\n    --learning_rat 1", "learning_rat"),
        ("trl-ext rrhf --config a.yaml --learning_rate high", "learning_rate"),
        ("cd a && trl-ext evaluate --from a.json --nothing", "nothing"),
        ("trl-ext plan --model M --method rrhf --card 8GB --load_in_4bits", "load_in_4bits"),
        ("trl-ext frontier a.json --titel x", "titel"),
        ("trl-ext quickstart rrhf --learning_rat 1", "learning_rat"),
        ("trl-ext sample --model_name_or_path M --output_file a.jsonl", "dataset_name"),
    ],
)
def test_wrong_commands_are_found(text: str, problem: str) -> None:
    with pytest.raises((ValueError, AssertionError), match=problem):
        for words in commands_in(text):
            check_command(words, check_values)


def test_commands_are_found_in_scripts() -> None:
    script = "pip install trl-ext\n# a comment\nA=1 trl-ext rrhf --x 'a b' \\\n  --y > log && trl-ext env  # another\n"
    assert list(commands_in(script)) == [["rrhf", "--x", "a b", "--y"], ["env"]]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a: b: c", "mapping values"),
        ("# In a recipe for `trl-ext rrhf`\nlearning_rat: 1\n", "learning_rat"),
        ("# A recipe.\n#\n#   trl-ext rrhf --config a.yaml\n\nlearning_rate: high\n", "learning_rate"),
    ],
)
def test_wrong_yaml_is_found(text: str, problem: str, tmp_path: Path) -> None:
    with pytest.raises((ValueError, yaml.YAMLError), match=problem):
        check_yaml(text, tmp_path)
