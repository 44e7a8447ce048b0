# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""The rules of CONTRIBUTING.md that a program can check."""

import ast
import functools
import importlib
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import HANGS

from trl_ext import upstream
from trl_ext.method import discover


ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "trl_ext"
FILES = sorted(PACKAGE.rglob("*.py"))
METHOD_FOLDERS = sorted(path.parent for path in (PACKAGE / "methods").glob("*/__init__.py"))
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())

FUNCTION_LINES = 50

METHOD_FILES = {"__init__.py", "config.py", "data.py", "losses.py", "trainer.py"}

# Longer than the rule, and why that reads better. An entry that is no longer needed is an error.
LONG_FUNCTIONS: dict[str, str] = {}


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@functools.cache
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
def test_a_method_has_the_same_files_as_the_others(folder):
    found = discover().methods[folder.name]
    assert found.package == "trl-ext"
    assert found.method.config.startswith(f"trl_ext.methods.{folder.name}.config:")
    assert found.method.trainer.startswith(f"trl_ext.methods.{folder.name}.trainer:")
    assert (folder / "README.md").is_file()
    assert {path.name for path in folder.glob("*.py")} >= METHOD_FILES


def test_entry_points_are_the_method_folders():
    declared = PYPROJECT["project"]["entry-points"]["trl_ext.methods"]
    assert declared == {folder.name: f"trl_ext.methods.{folder.name}:METHOD" for folder in METHOD_FOLDERS}


def test_import_contracts():
    """Layers of the package and of the benchmarks, independent methods and no circles, as in `pyproject.toml`."""
    command = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    result = subprocess.run(
        [sys.executable, "-c", command, "--no-cache", "--no-logo"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=HANGS,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "4 kept, 0 broken" in result.stdout


@pytest.mark.parametrize("path", [path for path in FILES if PACKAGE / "methods" not in path.parents], ids=relative)
def test_nothing_shared_spells_a_methods_name(path):
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


@pytest.mark.parametrize("folder", sorted({path.parent for path in FILES} - {PACKAGE}), ids=relative)
def test_a_folder_says_what_it_is_for(folder):
    """Its `__init__.py` says what the folder is for and, unless it is a method, what it may import."""
    module = tree(folder / "__init__.py")
    text = ast.get_docstring(module) or ""
    assert len(text.split(".")) >= 2
    if folder not in METHOD_FOLDERS:
        assert "mport" in text
        assert len(module.body) == 1, "import from the module that defines a name"


def test_no_drawer_for_odds_and_ends():
    assert not {path.stem for path in FILES} & {"utils", "util", "helpers", "helper", "common", "misc"}


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
    assert all(len(reason) > 20 for reason in LONG_FUNCTIONS.values())


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


ACCESSORS = ("getattr", "hasattr", "setattr", "delattr")


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def own_names() -> set[str]:
    """Every name that the package defines: functions, classes, arguments, variables and attributes."""
    names = set()
    for path in FILES:
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                names.add(node.name)
            elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "self":
                names |= {node.attr} if isinstance(node.ctx, ast.Store) else set()
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                names.add(node.id)
    return names


def private_attributes(module: ast.Module) -> Iterator[tuple[str, str]]:
    """Private attributes that a file reads or sets, also by `getattr` and its like: the name and the expression."""
    for node in ast.walk(module):
        if isinstance(node, ast.Attribute) and is_private(node.attr):
            yield node.attr, ast.unparse(node)
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") in ACCESSORS:
            name = getattr(node.args[1], "value", "") if len(node.args) > 1 else ""
            if isinstance(name, str) and is_private(name):
                yield name, ast.unparse(node)


def test_private_attributes_of_libraries_only_in_upstream():
    """A private attribute is one that the package defines, or a hook of `upstream.HOOKS` on a subclass of ours."""
    own, hooks = own_names(), {name for names in upstream.HOOKS.values() for name in names}
    wrong = []
    for path in FILES:
        if path != PACKAGE / "upstream.py":
            for name, expression in private_attributes(tree(path)):
                owner = expression.partition(".")[0]
                on_ours = owner in ("self", "super()", "cls") or owner.endswith("Config")
                if name not in own and not name.startswith("_trl_ext_") and not (name in hooks and on_ours):
                    wrong.append(f"{relative(path)}: {expression}")
    assert not wrong


DEVICE_MODULES = "accelerator cuda xpu mps cpu mtia backends version get_device_module".split()


def device_questions(module: ast.Module) -> list[str]:
    """Where a file asks torch itself about devices: attributes of `torch` and imports from its modules."""
    return [
        ast.unparse(node)
        for node in ast.walk(module)
        if (isinstance(node, ast.Attribute) and node.attr in DEVICE_MODULES and ast.unparse(node.value) == "torch")
        or (isinstance(node, ast.ImportFrom) and node.module in {f"torch.{name}" for name in DEVICE_MODULES})
        or (isinstance(node, ast.ImportFrom) and node.module == "torch" and set(DEVICE_MODULES) & names_in(node))
    ]


def names_in(node: ast.ImportFrom) -> set[str]:
    return {alias.name for alias in node.names}


def test_only_one_file_asks_torch_about_devices():
    """torch names an accelerator that is not there, so each question has one place; benchmarks ask there too."""
    asking = [path for path in (*FILES, *(ROOT / "benchmarks").rglob("*.py")) if device_questions(tree(path))]
    assert asking == [PACKAGE / "devices.py", PACKAGE / "upstream.py"]


def test_questions_about_devices_are_found():
    source = "from torch import cuda, nn\nfrom torch.cuda import Stream\ntorch.cuda.is_available()\ntorch.nn.Linear"
    assert len(device_questions(ast.parse(source))) == 3


def test_private_attributes_are_found():
    found = private_attributes(ast.parse("model._inside.x = getattr(self, '_other') + own.__dict__['_third']"))
    assert [name for name, _ in found] == ["_inside", "_other"]


def test_overridden_private_names_are_hooks():
    """Private names of a library's class that a class of ours defines too; and no hook that nothing uses."""
    ours = {cls for path in FILES if path.name != "__main__.py" for cls in classes(path)}
    overridden = {
        name
        for cls in ours
        for name in vars(cls)
        if is_private(name)
        for base in cls.__mro__[1:]
        if base.__module__.partition(".")[0] not in ("trl_ext", "typing", "abc") and name in vars(base)
    }
    overridden -= {"_backward_cls", "_abc_impl", "_lock"}  # set by torch, Python and tqdm on each subclass
    hooks = {name for names in upstream.HOOKS.values() for name in names}
    called = {name for path in FILES for name, expression in private_attributes(tree(path)) if "self." in expression}
    assert overridden <= hooks
    assert hooks <= overridden | called


def classes(path: Path) -> list[type]:
    """The classes that a file of the package defines."""
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    values = vars(importlib.import_module(name)).values()
    return [value for value in values if isinstance(value, type) and value.__module__ == name]


def test_upstream_imports_only_upstream():
    names = imports(PACKAGE / "upstream.py")
    assert names
    assert not [name for name in names if is_within(name, "trl.experimental") or is_within(name, "trl_ext")]


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
    "name",
    [
        *["LICENSE", "README.md", "CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", "trl_ext/py.typed", ".ci/run"],
        *[f".github/{name}.md" for name in ("CODE_OF_CONDUCT", "PULL_REQUEST_TEMPLATE", "SECURITY")],
    ],
)
def test_a_project_has(name):
    assert (ROOT / name).is_file()


def test_ci_runs_what_contributing_says():
    assert ".ci/run" in (ROOT / "CONTRIBUTING.md").read_text()
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o111


@pytest.mark.parametrize(
    ("code", "seconds"),
    [
        ("import trl_ext", 0.3),
        ("from trl_ext.cli.main import main; main(['--help'])", 1.5),
        ("from trl_ext.cli.main import main; main(['methods'])", 1.5),
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
        result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=HANGS)
        assert result.returncode == 0, result.stderr
        times.append(float(result.stdout.split()[-1]))
    assert min(times) < seconds
