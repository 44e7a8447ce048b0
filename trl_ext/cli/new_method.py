# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
`trl-ext new-method`: writes a package with a method that works, to be changed into another one.

Its files are those of `recipes/new_method`, with the name replaced, and the quickstart's models and prompts.
"""

import importlib.util
import keyword
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from trl_ext.method import Method, discover
from trl_ext.plugins import canonical

from .config_file import recipes_folder


_HELP = """\
usage: trl-ext new-method NAME DIRECTORY

example:
  trl-ext new-method listwise my-listwise

Write a Python package that adds the method NAME: a loss, a config, a collator, a
trainer, a test and a recipe for two CPU cores. It works as it is, and is there
to be changed. DIRECTORY must not exist, or be empty.
"""
_NEXT = """\
Wrote the method {name} to {folder}. To install, test and train it:

  cd {folder}
  pip install -e ".[test]"
  pytest
  trl-ext {name} --config recipes/quickstart.yaml
"""

# In names and texts of the template.
_WORDS = {"my_method": "{name}", "my-method": "{dashed}", "MyMethod": "{camel}"}
_LICENCE = re.compile(r"\A# Copyright .*\n# SPDX.*\n\n?")  # of this package: the written one has its author's
_QUICKSTART = ("models", "prompts_train.jsonl", "prompts_eval.jsonl")


def main(argv: Sequence[str]) -> int:
    """
    `trl-ext new-method`.

    Raises:
        `ValueError`: The name cannot be that of a method or of a Python package, or is taken.
        `FileExistsError`: The directory has files in it.
    """
    arguments = list(argv)
    if not arguments or any(word in ("--help", "-h") for word in arguments):
        print(_HELP, end="")
        return 0
    if len(arguments) != 2 or any(word.startswith("-") for word in arguments):
        raise ValueError(f"takes a name and a directory, got {' '.join(argv)!r}; see trl-ext new-method --help")
    name, folder = canonical(arguments[0]), Path(arguments[1]).expanduser()
    _check_name(name)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} exists and is not an empty directory: name another one")
    write_package(name, folder)
    print(_NEXT.format(name=name, folder=folder), end="")
    return 0


def write_package(name: str, folder: Path) -> None:
    """
    Write the package of a new method.

    Args:
        name (`str`): Name of the method, and of the module.
        folder (`Path`): Where to; existing files are replaced.
    """
    template = recipes_folder() / "new_method"
    for source in sorted(path for path in template.rglob("*") if path.is_file()):
        relative = source.relative_to(template)
        if any(part.startswith((".", "__pycache__")) for part in relative.parts):  # caches of Python and of linters
            continue
        path = folder / _named(str(relative), name)
        path = path.with_name(".gitignore") if path.name == "gitignore" else path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(_named(_LICENCE.sub("", source.read_text(encoding="utf-8")), name), encoding="utf-8")
    for part in _QUICKSTART:
        source = recipes_folder() / "quickstart" / part
        (shutil.copytree if source.is_dir() else shutil.copyfile)(source, folder / "recipes" / part)


def _check_name(name: str) -> None:
    """Raise a `ValueError` if a package and a method cannot have this name."""
    Method(name=name, paper="", summary="", config=f"{name}.config:Config", trainer=f"{name}.trainer:Trainer")
    if keyword.iskeyword(name):
        raise ValueError(f"{name!r} is a word of Python and cannot name a package: choose another name")
    found = discover().find(name)
    if found is not None:
        raise ValueError(f"there is a method {name!r} already, from {found.source}: choose another name")
    if importlib.util.find_spec(name) is not None:
        raise ValueError(
            f"there is a Python module {name!r} already, which the package would hide: choose another name"
        )


def _named(text: str, name: str) -> str:
    """A text of the template with the name of the new method."""
    names = {"name": name, "dashed": name.replace("_", "-"), "camel": "".join(map(str.capitalize, name.split("_")))}
    for word, new in _WORDS.items():
        text = text.replace(word, new.format(**names))
    return text
