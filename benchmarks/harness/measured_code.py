# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
Which code a suite measures, and whether it has changed since.

From the functions and classes that measure, every name is followed to its definition in `benchmarks` or `trl_ext`,
through imports inside functions, modules that a command runs (`-m package.module`), `"package.module:Class"` strings
and entry points. Each definition has a fingerprint of what it computes, not of where it is or how it is
described: it stays the same when a file moves, and when imports, comments, docstrings, help texts, error messages or
the annotations of functions change. A result keeps the fingerprints of the definitions that it ran through.

An import graph alone knows modules, not the definitions in them: one changed function of a large file would count for
every suite that imports the file, and a definition that moves would count as changed. So the source is read by `ast`.
"""

import ast
import functools
import hashlib
import sys
import tomllib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


PACKAGES = ("benchmarks", "trl_ext")
DIGITS = 8  # of a fingerprint, hexadecimal


@dataclass(frozen=True, eq=False)
class Definition:
    """
    A statement at the top level of a module.

    Args:
        module (`str`): Where it is.
        names (`tuple[str, ...]`): What it defines; empty for a statement that only does something.
        node (`ast.stmt`): Without what does not count, see `_Essence`.
        imports (`dict[str, str]`): Names imported in its module or inside it, and what they stand for
            (`"package.module.name"`).
    """

    module: str
    names: tuple[str, ...]
    node: ast.stmt
    imports: dict[str, str]


class Module:
    """The definitions and imports of a file."""

    def __init__(self, name: str, source: str, is_package: bool) -> None:
        self.name, self.is_package = name, is_package
        statements = [s for s in ast.parse(source).body if not _is_main_block(s)]
        scopes = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
        self.imports: dict[str, str] = {}
        for statement in statements:
            if not isinstance(statement, scopes):
                self.imports |= _imports(statement, name, is_package)
        self.definitions: dict[str, list[Definition]] = {}
        self.effects: list[Definition] = []
        for statement in statements:
            imports = self.imports | _imports(statement, name, is_package)
            essence = _Essence().visit(statement)
            if essence is None:
                continue
            definition = Definition(name, tuple(_defined(essence)), essence, imports)
            for defined in definition.names:
                self.definitions.setdefault(defined, []).append(definition)
            if not definition.names:
                self.effects.append(definition)


class Code:
    """
    The code of a source tree.

    Args:
        root (`Path`): Folder that has the packages and `pyproject.toml`.
    """

    def __init__(self, root: Path) -> None:
        self.modules: dict[str, Module] = {}
        for package in PACKAGES:
            for path in sorted((root / package).rglob("*.py")):
                parts = path.relative_to(root).with_suffix("").parts
                is_package = parts[-1] == "__init__"
                name = ".".join(parts[:-1] if is_package else parts)
                self.modules[name] = Module(name, path.read_text(encoding="utf-8"), is_package)
        project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        self.entry_points = {group: list(found.values()) for group, found in project.get("entry-points", {}).items()}

    def reached(self, references: Sequence[str]) -> dict[str, str]:
        """
        The definitions that work may run through.

        Args:
            references (`Sequence[str]`): Functions and classes where it begins, as `"package.module:name"`.

        Returns:
            `dict[str, str]`: The fingerprint of each definition -> its module and names, for people.

        Raises:
            `ValueError`: There is no such definition.
        """
        todo: list[Definition] = []
        for reference in references:
            found = list(self._find(reference.replace(":", ".")))
            if not any(definition.names for definition in found):
                raise ValueError(f"{reference!r} is not defined in {' or '.join(PACKAGES)}.")
            todo += found
        reached: set[Definition] = set()
        while todo:
            definition = todo.pop()
            if definition not in reached:
                reached.add(definition)
                todo += self._used(definition)
        return {self._fingerprint(d): f"{d.module}: {', '.join(d.names) or 'a statement'}" for d in reached}

    def _split(self, dotted: str) -> tuple[Module | None, list[str]]:
        """The module that a dotted name begins with, and the rest of it."""
        parts = dotted.split(".")
        for end in range(len(parts), 0, -1):
            if module := self.modules.get(".".join(parts[:end])):
                return module, parts[end:]
        return None, parts

    def _find(self, dotted: str) -> Iterator[Definition]:
        """What a dotted name stands for, and what importing its module does."""
        module, rest = self._split(dotted)
        if module is None:
            return
        parts = module.name.split(".")
        for end in range(1, len(parts) + 1):
            if parent := self.modules.get(".".join(parts[:end])):
                yield from parent.effects
        if not rest:
            return
        if rest[0] in module.definitions:
            yield from module.definitions[rest[0]]
        elif rest[0] in module.imports:
            target = ".".join([module.imports[rest[0]], *rest[1:]])
            if target != dotted:
                yield from self._find(target)
        elif module.is_package:  # its `__getattr__` imports the name from one of its modules
            inside = (m for name, m in self.modules.items() if name.startswith(f"{module.name}."))
            for inner in inside:
                yield from inner.definitions.get(rest[0], [])

    def _used(self, definition: Definition) -> Iterator[Definition]:
        module = self.modules[definition.module]
        yield from self._find(module.name)
        for node in ast.walk(definition.node):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                for target in self._named_by(node.value):
                    yield from self._find(target)
            elif (dotted := _dotted(node)) is not None:
                first = dotted.partition(".")[0]
                if first in definition.imports:
                    yield from self._find(definition.imports[first] + dotted.removeprefix(first))
                else:
                    yield from module.definitions.get(first, [])

    def _named_by(self, text: str) -> list[str]:
        """What a string refers to: a class, the `main` of a module that a command runs, or entry points of a group."""
        found = [reference.replace(":", ".") for reference in self.entry_points.get(text, [])]
        module, _, name = text.partition(":")
        if module not in self.modules:
            return found
        if not name:
            name = "__main__.main" if self.modules[module].is_package else "main"
        return [*found, f"{module}.{name}"]

    def _fingerprint(self, definition: Definition) -> str:
        return hashlib.sha256(self._text(definition.node, definition.imports).encode()).hexdigest()[:DIGITS]

    def _text(self, value: Any, imports: dict[str, str]) -> str:
        """
        A syntax tree as text, in which our definitions are named without their modules.

        It is the same for every version of Python, which `ast.dump` is not.
        """
        if isinstance(value, list):
            return f"[{', '.join(self._text(part, imports) for part in value)}]"
        if not isinstance(value, ast.AST):
            return repr(value)
        if isinstance(value, ast.Constant) and isinstance(value.value, str) and self._named_by(value.value):
            return f"a reference to :{value.value.partition(':')[2]}"
        if (dotted := _dotted(value)) is not None and (first := dotted.partition(".")[0]) in imports:
            module, names = self._split(imports[first] + dotted.removeprefix(first))
            if module is not None:  # as within the module
                value = ast.Name("".join(names[:1]))
                for name in names[1:]:
                    value = ast.Attribute(value, name)
                imports = {}
        shown = []
        for name, part in ast.iter_fields(value):
            if name not in ("ctx", "kind", "type_comment") and part is not None and part != []:
                shown.append(f"{name}={self._text(part, imports)}")
        return f"{type(value).__name__}({', '.join(shown)})"


class _Essence(ast.NodeTransformer):
    """Leave out what changes no figure: imports, docstrings, help texts, messages, annotations of functions."""

    functions = 0  # around the node

    def visit_Import(self, node: ast.Import) -> None:
        return None

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        return None

    def visit_Pass(self, node: ast.Pass) -> None:
        return None

    def visit_Expr(self, node: ast.Expr) -> ast.AST | None:
        return None if isinstance(node.value, ast.Constant) else self.generic_visit(node)

    def visit_If(self, node: ast.If) -> ast.AST | None:
        self.generic_visit(node)
        return node if node.body or node.orelse else None  # `if TYPE_CHECKING:` with imports alone

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> ast.AST:
        node.returns = None
        self.functions += 1
        self.generic_visit(node)
        self.functions -= 1
        return node

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> ast.AST:
        return self.visit_FunctionDef(node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        """In the body of a class the annotation makes a field and stays."""
        self.generic_visit(node)
        return ast.Assign([node.target], node.value) if self.functions and node.value is not None else node

    def visit_arg(self, node: ast.arg) -> ast.AST:
        node.annotation = None
        return node

    def visit_Raise(self, node: ast.Raise) -> ast.AST:
        if isinstance(node.exc, ast.Call):
            node.exc = node.exc.func
        return self.generic_visit(node)

    def visit_Dict(self, node: ast.Dict) -> ast.AST:
        kept = [(key, value) for key, value in zip(node.keys, node.values, strict=True) if not _is_help(key)]
        node.keys, node.values = [key for key, _ in kept], [value for _, value in kept]
        return self.generic_visit(node)

    def visit_keyword(self, node: ast.keyword) -> ast.AST | None:
        return None if node.arg == "help" else self.generic_visit(node)

    def visit_Assign(self, node: ast.Assign) -> ast.AST:
        """A path made from `__file__` is the place of a file."""
        if any(isinstance(part, ast.Name) and part.id == "__file__" for part in ast.walk(node.value)):
            node.value = ast.Name("__file__", ast.Load())
        return self.generic_visit(node)


def _is_main_block(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.If) and "__name__" in ast.dump(statement.test)


def _is_help(key: ast.expr | None) -> bool:
    return isinstance(key, ast.Constant) and key.value == "help"


def _imports(statement: ast.stmt, module: str, is_package: bool) -> dict[str, str]:
    """The names that a statement imports, anywhere in it, and what they stand for."""
    found = {}
    for node in ast.walk(statement):
        if isinstance(node, ast.Import):
            for alias in node.names:
                first = alias.name.partition(".")[0]
                found[alias.asname or first] = alias.name if alias.asname else first
        elif isinstance(node, ast.ImportFrom):
            above = module.split(".")[: -(node.level - is_package) or None] if node.level else []
            base = [*above, *([node.module] if node.module else [])]
            for alias in node.names:
                found[alias.asname or alias.name] = ".".join([*base, alias.name])
    return found


def _defined(node: ast.AST) -> Iterator[str]:
    """The names that a statement gives to its module; those inside functions and comprehensions do not leave them."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        yield node.name
    elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
        yield node.id
    elif not isinstance(node, ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp | ast.Lambda):
        for child in ast.iter_child_nodes(node):
            yield from _defined(child)


def _dotted(node: ast.AST) -> str | None:
    """`a.b.c` of a name with attributes."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (before := _dotted(node.value)) is not None:
        return f"{before}.{node.attr}"
    return None


# ------------------------------------------------------------------------------------------------------ of a result


def reference(measure: Any) -> str:
    """`"package.module:name"` of a function or class, also of a module that is run as a command."""
    spec = sys.modules[measure.__module__].__spec__
    return f"{spec.name if spec else measure.__module__}:{measure.__qualname__}"


@functools.cache
def _code_of(root: Path) -> Code:
    return Code(root)


def reached(measures: Iterable[Any], root: Path) -> dict[str, str]:
    """The definitions that functions and classes run through, see [`Code.reached`]."""
    return _code_of(root).reached(sorted(map(reference, measures)))


def stamp(found: Iterable[str]) -> dict[str, str]:
    """What a result keeps: the fingerprints, joined, and a digest of them."""
    definitions = "".join(sorted(found))
    return {"digest": hashlib.sha256(definitions.encode()).hexdigest()[:16], "definitions": definitions}


def fingerprints(sources: dict[str, str]) -> set[str]:
    """Those that a result keeps; none if its code is not in the history."""
    joined = sources.get("definitions", "")
    return {joined[i : i + DIGITS] for i in range(0, len(joined), DIGITS)}


def changes(sources: dict[str, str], now: Iterable[str]) -> str:
    """
    Whether the code that a result measured has changed since.

    Args:
        sources (`dict[str, str]`): What the result keeps, of [`stamp`].
        now (`Iterable[str]`): Fingerprints of what its suite runs through today.
    """
    if "definitions" not in sources:
        return "whether it has changed since is unknown"
    measured = fingerprints(sources)
    changed = measured.difference(now)
    if not changed:
        return "code unchanged since"
    return f"{len(changed)} of {len(measured)} definitions that it ran through have changed since"
