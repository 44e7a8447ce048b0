# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Valid and invalid methods, and discovery with valid, broken and conflicting packages."""

import dataclasses
import importlib
import sys

import pytest
from stranger import METHOD, write_package

import trl_ext
from trl_ext.commands import REWARD
from trl_ext.method import Discovery, Found, Method, discover, import_class


GOOD = {
    "name": "some_method",
    "paper": "2401.00001",
    "summary": "A summary.",
    "config": "pkg.module:SomeConfig",
    "trainer": "pkg.module:SomeTrainer",
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder on `sys.path` for packages. Modules imported from it are removed from `sys.modules` afterwards."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


def declared(name: str) -> str:
    """Source of a package whose method has this name."""
    return METHOD.replace('name="stranger"', f'name="{name}"')


class TestMethod:
    def test_is_frozen(self):
        with pytest.raises(dataclasses.FrozenInstanceError):
            Method(**GOOD).name = "other"

    def test_class_names_map_to_references(self):
        assert Method(**GOOD).class_names == {
            "SomeConfig": "pkg.module:SomeConfig",
            "SomeTrainer": "pkg.module:SomeTrainer",
        }

    @pytest.mark.parametrize("name", ["", "Upper", "with-hyphen", "with space", "1st", "_private"])
    def test_malformed_name(self, name):
        with pytest.raises(ValueError, match="cannot name a method"):
            Method(**{**GOOD, "name": name})

    @pytest.mark.parametrize("name", ["sample", "best_of_n", "evaluate", "generate", "chat", "methods", "env"])
    def test_name_of_a_command(self, name):
        with pytest.raises(ValueError, match=f"'{name}' is a command"):
            Method(**{**GOOD, "name": name})

    @pytest.mark.parametrize("field", ["config", "trainer", "decoding"])
    @pytest.mark.parametrize("reference", ["pkg.module.Class", "pkg.module:", ":Class", "pkg:a.b", "", None, int])
    def test_malformed_reference(self, field, reference):
        if (field, reference) == ("decoding", ""):  # most methods have none
            assert Method(**GOOD, decoding="").decoding_class() is None
            return
        with pytest.raises(ValueError, match=f"`{field}` of method 'some_method'"):
            Method(**{**GOOD, field: reference})

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("columns", "prompt"),
            ("required", ("reward_funcs",)),
            ("required", REWARD),  # a comma is missing
            ("server_settings", "server"),
        ],
    )
    def test_malformed_tuple(self, field, value):
        with pytest.raises(ValueError, match=f"`{field}` of method 'some_method' must be a tuple of"):
            Method(**{**GOOD, field: value})

    def test_of_class_is_the_method_of_the_nearest_base(self):
        """A plug-in may extend the config or the trainer of a method that comes before it."""
        own = Method("own", "", "Own.", config="own:OwnConfig", trainer="own:OwnTrainer")
        found = Discovery({each.name: Found(each, "a-pkg", "1") for each in (Method(**GOOD), own)})
        base = type("SomeConfig", (), {"__module__": "pkg.module"})
        derived = type("OwnConfig", (base,), {"__module__": "own"})
        classes = [
            base,
            derived,
            type("Further", (derived,), {}),
            type("SomeTrainer", (), {"__module__": "pkg.module"}),
        ]
        assert [found.of_class(cls).name for cls in classes] == ["some_method", "own", "own", "some_method"]
        assert found.of_class(object) is None

    def test_decoding_class_imports_the_class(self):
        assert Method(**GOOD, decoding="collections:OrderedDict").decoding_class().__name__ == "OrderedDict"

    def test_import_class(self):
        assert import_class("collections:OrderedDict").__name__ == "OrderedDict"
        with pytest.raises(ImportError, match="'collections' has no class 'Missing'"):
            import_class("collections:Missing")
        with pytest.raises(ImportError, match="no_such_module"):
            import_class("no_such_module:Class")


class TestDiscover:
    def test_a_method_of_another_package_is_found_with_its_source(self, folder):
        write_package(folder)
        found = discover().methods["stranger"]
        assert (found.package, found.version, found.source) == ("stranger-pkg", "0.3", "stranger-pkg 0.3")
        assert found.method.columns == ("text",)
        assert "stranger_pkg.training" not in sys.modules  # finding a method must not import its trainer

    @pytest.mark.parametrize("word", ["two_words", "two-words", "Two-Words"])
    def test_names_with_hyphens_or_underscores_are_the_same(self, folder, word):
        write_package(
            folder, files={"__init__.py": declared("two_words")}, entry_points={"two-words": "stranger_pkg:METHOD"}
        )
        assert discover().find(word).method.name == "two_words"

    @pytest.mark.parametrize(
        ("source", "error"),
        [
            ("import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
            ("raise RuntimeError('two\\n lines')", "RuntimeError: two lines"),
            ("import sys; sys.exit(3)", "SystemExit: 3"),
            ("", "AttributeError: module 'broken_pkg' has no attribute 'METHOD'"),
            ("METHOD = {'name': 'broken'}", "TypeError: 'broken_pkg:METHOD' must be a trl_ext.Method, but is a dict"),
            (declared("other"), "ValueError: entry point 'broken' names a method that calls itself 'other'"),
            (declared("sample"), "ValueError: 'sample' is a command of trl-ext and cannot be the name of a method."),
        ],
    )
    def test_a_broken_package_is_named_and_does_not_affect_others(self, folder, source, error):
        write_package(folder, "broken-pkg", {"__init__.py": source}, {"broken": "broken_pkg:METHOD"}, "1.2")
        write_package(folder)
        discovery = discover()
        [broken] = [entry for entry in discovery.broken if entry.package == "broken-pkg"]
        assert (broken.name, broken.source, broken.error) == ("broken", "broken-pkg 1.2", error)
        assert "stranger" in discovery.methods
        assert "broken" not in discovery.methods

    def test_the_first_package_by_name_keeps_a_method_name_in_any_order_of_the_path(self, folder, monkeypatch):
        # the second folder is searched first, but "a-pkg" comes before "z-pkg"
        late = folder / "late"
        monkeypatch.syspath_prepend(late)
        write_package(folder, "a-pkg", {"__init__.py": METHOD}, {"stranger": "a_pkg:METHOD"})
        write_package(late, "z-pkg", {"__init__.py": METHOD}, {"stranger": "z_pkg:METHOD"})
        discovery = discover()
        assert discovery.methods["stranger"].package == "a-pkg"
        [broken] = [entry for entry in discovery.broken if entry.name == "stranger"]
        assert broken.package == "z-pkg"
        assert broken.error == "ValueError: the name 'stranger' is taken by a-pkg 0.3, which is kept"

    def test_methods_of_this_package_are_first_and_keep_their_names(self, folder):
        own = discover().methods
        name = next(iter(own))
        assert own[name].package == "trl-ext"
        write_package(folder, "a-pkg", {"__init__.py": declared(name)}, {name: "a_pkg:METHOD"})
        discovery = discover()
        assert discovery.methods[name].package == "trl-ext"
        assert [entry.package for entry in discovery.broken if entry.name == name] == ["a-pkg"]


class TestPackage:
    def test_every_public_name_resolves(self):
        for name in trl_ext.__all__:
            assert getattr(trl_ext, name).__name__ == name

    def test_classes_of_methods_of_this_and_another_package(self, folder):
        write_package(folder)
        from trl_ext import RRHFConfig, RRHFTrainer, StrangerTrainer

        assert RRHFTrainer is import_class("trl_ext.methods.rrhf.trainer:RRHFTrainer")
        assert RRHFConfig is import_class("trl_ext.methods.rrhf.config:RRHFConfig")
        assert StrangerTrainer.__module__ == "stranger_pkg.training"
        assert {"RRHFConfig", "RRHFTrainer", "StrangerTrainer", "Method", "discover"} <= set(dir(trl_ext))
        del trl_ext.StrangerTrainer  # the package stores a name when it is first used

    def test_a_star_imports_the_names_that_belong_to_no_method(self):
        """Including names that are imported on first use; classes of methods are imported by name only."""
        found: dict[str, object] = {}
        exec("from trl_ext import *", found)
        names = {name for name in found if name != "__builtins__"}
        assert names == set(trl_ext.__all__) <= set(dir(trl_ext))
        assert {"DataError", "Decoding", "ExtConfig", "Method", "best_of_n", "load_dataset"} <= names
        assert not any(name.endswith("Trainer") for name in names)
        assert found["Method"] is Method

    def test_the_error_about_an_unknown_name_lists_broken_plugins(self, folder):
        write_package(folder, "broken-pkg", {"__init__.py": "import no_such_module"}, {"broken": "broken_pkg:METHOD"})
        with pytest.raises(AttributeError, match=r"no attribute 'BrokenTrainer' .*broken of broken-pkg 0\.3: Module"):
            trl_ext.BrokenTrainer  # noqa: B018

    def test_submodules_are_attributes(self):
        assert importlib.reload(trl_ext).method is sys.modules["trl_ext.method"]

    def test_version_is_that_of_the_installed_package(self):
        from importlib.metadata import version

        assert trl_ext.__version__ == version("trl-ext")
