# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""The rules of CONTRIBUTING that a machine can watch."""

import ast
import re
import subprocess
import sys
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import pytest

from trl_ext.method import discover


ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "trl_ext"
FILES = sorted(PACKAGE.rglob("*.py"))
METHOD_FOLDERS = sorted(path for path in PACKAGE.iterdir() if path.is_dir() and path.name[0] not in "._")
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())

FILE_LINES = 300
FUNCTION_LINES = 50

# What a method's folder may hold. A name that is missing is a statement; a new name is a decision, made here.
METHOD_FILES = {"__init__.py", "config.py", "data.py", "losses.py", "trainer.py"}
OPTIONAL_METHOD_FILES = {
    "api.py",
    "generation.py",
    "loading.py",
    "model.py",
    "candidates.py",
    "decoding.py",
    "answers.py",
    "policy.py",
    "static.py",
}

# Longer than the rule, and why that reads better. An entry that is no longer needed is an error.
LONG_FILES: dict[str, str] = {
    "trl_ext/ext_trainer.py": "one class, the base of all trainers: a run's parts in their order",
    "trl_ext/vas/api.py": "one class, half of it documentation: both ways of asking a server, side by side",
    "trl_ext/proxy_rlhf/trainer.py": "one class, a fifth of it documentation: the story of the method in one place",
    "trl_ext/psle/trainer.py": "one class, a fifth of it documentation: the story of the method in one place",
    "trl_ext/rrhf/trainer.py": "one class, a fifth of it documentation: the story of the method in one place",
    "trl_ext/vas/generation.py": "one class, a third of it documentation: guidance in both loops, side by side",
    "trl_ext/vas/trainer.py": "one class, a sixth of it documentation: where samples and values come from and go to",
}
LONG_FUNCTIONS: dict[str, str] = {
    "trl_ext/psle/trainer.py:__init__": "TRL's constructor: its arguments are checked and used in the order in which "
    "mistakes are cheapest to find",
}


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imports(path: Path) -> set[str]:
    """Absolute names of the modules that a file imports, and of what it imports from them."""
    package = (path.relative_to(ROOT).with_suffix("").parts)[:-1]
    names: set[str] = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) + 1 - node.level]) if node.level else ""
            module = ".".join(part for part in (base, node.module) if part)
            names |= {module} | {f"{module}.{alias.name}" for alias in node.names}
    return names


def is_within(name: str, module: str) -> bool:
    return name == module or name.startswith(f"{module}.")


def test_there_is_something_to_look_at():
    assert len(FILES) > 15
    assert METHOD_FOLDERS


@pytest.mark.parametrize("folder", METHOD_FOLDERS, ids=lambda folder: folder.name)
def test_every_directory_is_a_method(folder):
    found = discover().methods[folder.name]
    assert found.package == "trl-ext"
    assert found.method.config.startswith(f"trl_ext.{folder.name}.config:")
    assert found.method.trainer.startswith(f"trl_ext.{folder.name}.trainer:")
    assert (folder / "README.md").is_file()
    files = {path.name for path in folder.glob("*.py")}
    assert files >= METHOD_FILES
    assert files <= METHOD_FILES | OPTIONAL_METHOD_FILES, "a new kind of file is a decision: see METHOD_FILES"
    assert not [path for path in folder.iterdir() if path.is_dir() and path.name[0] not in "._"]


def test_entry_points_are_the_method_folders():
    declared = PYPROJECT["project"]["entry-points"]["trl_ext.methods"]
    assert declared == {folder.name: f"trl_ext.{folder.name}:METHOD" for folder in METHOD_FOLDERS}


@pytest.mark.parametrize("folder", METHOD_FOLDERS, ids=lambda folder: folder.name)
def test_methods_import_no_other_method_and_shared_files_none(folder):
    for path in FILES:
        if folder not in path.parents:
            wrong = [name for name in imports(path) if is_within(name, f"trl_ext.{folder.name}")]
            assert not wrong, f"{relative(path)} imports {wrong}"


@pytest.mark.parametrize("path", [path for path in FILES if path.parent == PACKAGE], ids=relative)
def test_shared_files_never_spell_a_methods_name(path):
    module = tree(path)
    docstrings = {
        id(node.value)
        for node in ast.walk(module)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    words = [
        node.value if isinstance(node, ast.Constant) else node.id if isinstance(node, ast.Name) else node.attr
        for node in ast.walk(module)
        if isinstance(node, ast.Name | ast.Attribute)
        or (isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings)
    ]
    for folder in METHOD_FOLDERS:
        pattern = re.compile(rf"(?<![a-z]){folder.name}(?![a-z])", re.IGNORECASE)
        assert not [word for word in words if pattern.search(word)]


def test_contributing_names_every_file():
    """Its table of shared files, none forgotten and none gone; and the files that a method's directory may hold."""
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    table = page[page.index("| file | what it knows |") : page.index("There are two seams")]
    named = re.findall(r"`([\w*]+\.py)`", "".join(line.split("|")[1] for line in table.splitlines() if "|" in line))
    shared = {path.name for path in FILES if path.parent == PACKAGE and path.name[:2] != "__"}
    assert {name for name in shared if not any(fnmatch(name, one) for one in named)} == set()
    assert {one for one in named if not any(fnmatch(name, one) for name in shared)} == set()
    rule = page[page.index("A method's directory holds") : page.index("A file that is missing is a statement")]
    assert set(re.findall(r"`(\w+\.py)`", rule)) == METHOD_FILES | OPTIONAL_METHOD_FILES


def test_no_drawer_for_odds_and_ends():
    assert not {path.stem for path in FILES} & {"utils", "util", "helpers", "helper", "common", "misc"}


def test_files_are_short():
    long = {relative(path) for path in FILES if len(path.read_text().splitlines()) > FILE_LINES}
    assert long == set(LONG_FILES), "split what is too long, or say in LONG_FILES why it reads better whole"


def test_functions_are_short():
    """Lines of code, from the line after the docstring to the last."""
    long = set()
    for path in FILES:
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                body = node.body[1:] if ast.get_docstring(node) else node.body
                if body and body[-1].end_lineno - body[0].lineno + 1 > FUNCTION_LINES:
                    long.add(f"{relative(path)}:{node.name}")
    assert long == set(LONG_FUNCTIONS), "split what is too long, or say in LONG_FUNCTIONS why it reads better whole"


def test_exceptions_give_a_reason():
    assert all(len(reason) > 20 for reason in [*LONG_FILES.values(), *LONG_FUNCTIONS.values()])


@pytest.mark.parametrize("path", [path for path in FILES if path.name != "upstream.py"], ids=relative)
def test_private_upstream_names_only_in_upstream(path):
    """As the lint rule, whose list it reads, and for TRL more: no submodule but `trl.rewards`, no underscore."""
    banned = PYPROJECT["tool"]["ruff"]["lint"]["flake8-tidy-imports"]["banned-api"]
    assert "trl.trainer" in banned
    for name in imports(path):
        assert not any(is_within(name, module) for module in banned), f"{name}: import it in upstream.py"
        parts = name.split(".")
        if parts[0] in ("trl", "transformers"):
            assert not any(part.startswith("_") for part in parts), f"{name} is private"
        if parts[0] == "trl" and len(parts) > 2:
            assert is_within(name, "trl.rewards"), f"{name}: import it in upstream.py"


def test_upstream_imports_only_upstream():
    names = imports(PACKAGE / "upstream.py")
    assert names
    assert {name.partition(".")[0] for name in names} <= {"trl", "transformers"}
    assert not [name for name in names if is_within(name, "trl.experimental")]


def test_every_python_file_has_the_licence_header():
    header = ["# Copyright 2026 The trl-ext authors", "# SPDX-License-Identifier: Apache-2.0"]
    folders = [ROOT / name for name in ("trl_ext", "tests", "benchmarks", "recipes")]
    files = [path for folder in folders for path in folder.rglob("*.py")] + [ROOT / "pyproject.toml"]
    wrong = [
        relative(path)
        for path in files
        if path.read_text(encoding="utf-8").removeprefix("#!/usr/bin/env python\n").split("\n")[:2] != header
    ]
    assert not wrong


@pytest.mark.parametrize(
    "name", ["LICENSE", "README.md", "CHANGELOG.md", "CONTRIBUTING.md", "trl_ext/py.typed", ".ci/run"]
)
def test_a_project_has(name):
    assert (ROOT / name).is_file()


def test_changelog_knows_the_version():
    assert f"## [{PYPROJECT['project']['version']}]" in (ROOT / "CHANGELOG.md").read_text()


def test_ci_runs_what_contributing_says():
    assert ".ci/run" in (ROOT / "CONTRIBUTING.md").read_text()
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o111


@pytest.mark.parametrize(
    ("code", "seconds"),
    [
        ("import trl_ext", 0.3),
        ("from trl_ext.cli import main; main(['--help'])", 1.5),
        ("from trl_ext.cli import main; main(['methods'])", 1.5),
    ],
    ids=["import", "help", "methods"],
)
def test_light_things_stay_light(code, seconds):
    """No torch, and quick: CPU time, the best of three, as the machine may be busy."""
    script = f"""
import sys, time
start = time.process_time()
{code}
elapsed = time.process_time() - start
heavy = [name for name in ("torch", "transformers", "datasets", "trl") if name in sys.modules]
assert not heavy, heavy
print("elapsed", elapsed)
"""
    times = []
    for _ in range(3):
        result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
        assert result.returncode == 0, result.stderr
        times.append(float(result.stdout.split()[-1]))
    assert min(times) < seconds
