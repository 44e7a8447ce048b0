# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""`trl-ext recipes` and `trl-ext quickstart`: lists, copies and runs the recipes that come with the package."""

import ast
import re
import shutil
import textwrap
from collections.abc import Sequence
from pathlib import Path

from .config_file import recipes_folder


_FOLDER = re.compile(r"(?:\.\./|\brecipes/)(\w+)/")  # in a recipe: a folder of recipes or of their data

_RECIPES_HELP = """\
usage: trl-ext recipes
       trl-ext recipes copy NAME [NAME ...] [--to FOLDER]

List the recipes and scripts that come with the package, or copy some of them to
edit. NAME is a recipe, a script, or a folder of them:

  trl-ext recipes copy quickstart --to my-recipes
  trl-ext recipes copy scripts/own_reward.py

The folder is `recipes` unless --to names another. Files that exist are not
replaced.
"""
_QUICKSTART_HELP = """\
usage: trl-ext quickstart {{{methods}}} [--FIELD VALUE ...]

example:
  trl-ext quickstart {first}

Train a model of 1.85 M parameters that comes with the package, and compare it
with its base. Takes minutes on two CPU cores, without a network. Flags are
those of the training; the results are in outputs/quickstart*.
"""


def main(argv: Sequence[str]) -> int:
    """`trl-ext recipes`."""
    arguments = list(argv)
    if arguments in (["--help"], ["-h"]):
        print(_RECIPES_HELP, end="")
        return 0
    if not arguments:
        _print_recipes()
        return 0
    target = Path("recipes")
    if "--to" in arguments[:-1]:
        at = arguments.index("--to")
        target = Path(arguments[at + 1])
        del arguments[at : at + 2]
    if arguments[0] != "copy" or len(arguments) < 2 or any(word.startswith("-") for word in arguments):
        raise ValueError(f"cannot read {' '.join(argv)!r}; see trl-ext recipes --help")
    _copy(arguments[1:], target)
    return 0


def quickstart(argv: Sequence[str]) -> int:
    """`trl-ext quickstart`: trains with a method's quickstart recipe, then evaluates."""
    methods, arguments = quickstart_methods(), list(argv)
    if not arguments or any(word in ("--help", "-h") for word in arguments):
        print(_QUICKSTART_HELP.format(methods=",".join(methods), first=methods[0]), end="")
        return 0
    method = arguments.pop(0)
    if method not in methods:
        raise ValueError(f"there is no quickstart '{method}'; there are {', '.join(methods)}")
    if any(word.partition("=")[0] in ("--config", "--output_dir", "--output-dir") for word in arguments):
        raise ValueError(
            "the quickstart has its own --config and --output_dir; to change them: trl-ext recipes copy quickstart"
        )
    from . import evaluate, train

    status = train.main([method, "--config", str(_quickstarts() / f"{method}.yaml"), *arguments])
    return status or evaluate.main(["--config", str(_quickstarts() / f"{method}_evaluate.yaml")])


def quickstart_methods() -> list[str]:
    """The methods that have a quickstart."""
    return sorted(path.stem for path in _quickstarts().glob("*.yaml") if not path.stem.endswith("evaluate"))


def _quickstarts() -> Path:
    return recipes_folder() / "quickstart"


def _scripts() -> Path:
    return recipes_folder() / "scripts"


def _recipes() -> list[Path]:
    """The recipes, then the scripts: Python files, and packages with a recipe of their own."""
    recipes = [path for path in recipes_folder().glob("*/*.yaml") if path.parent.name != "accelerate"]
    return [*sorted(recipes), *sorted([*_scripts().glob("*.py"), *_scripts().glob("*/*.yaml")])]


def _print_recipes() -> None:
    columns = shutil.get_terminal_size().columns
    for path in _recipes():
        print(path.relative_to(recipes_folder()))
        print(textwrap.fill(_summary(path), max(80, columns), initial_indent="    ", subsequent_indent="    "))
    print("\nTo copy some of them: trl-ext recipes copy NAME ...")


def _summary(path: Path) -> str:
    """The first paragraph of the comment that a recipe begins with, or of the docstring of a script."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        text = ast.get_docstring(ast.parse(text)) or ""
    lines = []
    for line in text.splitlines():
        text = line.removeprefix("#").strip()
        if not text:
            break
        lines.append(text)
    return " ".join(lines)


def _copy(names: Sequence[str], target: Path) -> None:
    """
    Copy recipes and what they use.

    Raises:
        `ValueError`: There is no such recipe.
        `FileExistsError`: A file would be replaced; nothing is copied.
    """
    sources: list[Path] = []
    for name in names:
        source = recipes_folder() / name
        if not source.exists() or not source.resolve().is_relative_to(recipes_folder()):
            raise ValueError(f"there is no recipe '{name}'; trl-ext recipes lists them")
        sources += _files(source) if source.is_dir() else [source]
        for folder in _data_of(source):
            sources += [path for path in _files(folder) if path.suffix != ".yaml"]
    copies = {source: target / source.relative_to(recipes_folder()) for source in sources}
    existing = [str(path) for path in copies.values() if path.exists()]
    if existing:
        raise FileExistsError(f"{existing[0]} exists; remove it, or copy --to another folder")
    for source, path in copies.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, path)
        if path.suffix in (".yaml", ".py"):
            print(path)


def _data_of(source: Path) -> list[Path]:
    """The folders with models and prompts that a recipe or script, or a folder of them, names."""
    texts = [path for path in ([source] if source.is_file() else _files(source)) if path.suffix == ".yaml"]
    names = {name for path in texts for name in _FOLDER.findall(path.read_text(encoding="utf-8"))}
    if source.parent == _quickstarts() or source.resolve().is_relative_to(_scripts()):
        names.add(_quickstarts().name)
    return [folder for name in sorted(names) if any((folder := recipes_folder() / name).glob("*.jsonl"))]


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and path.parent.name != "__pycache__"]
