# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Cached rows are used again by the same code, tokenizer and settings, and by no others."""

import ast
from functools import partial
from pathlib import Path
from typing import Any

import dill
import pytest
from conftest import make_tokenizer
from datasets import Dataset, load_dataset

import trl_ext
from trl_ext.data import row_cache
from trl_ext.data.tokenization import prepare_dataset


ROOT = Path(trl_ext.__file__).parent
ROWS = [
    {"prompt": "the film", "chosen": " was good", "rejected": " was bad"},
    {"prompt": "a", "chosen": " b", "rejected": " c"},
]


def template(name: str) -> str:
    return f"{{% for m in messages %}}{name} {{{{ m['content'] }}}}{{% endfor %}}"


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    """Rows in a file, whose maps are cached on disk."""
    Dataset.from_list(ROWS).to_json(tmp_path / "rows.jsonl")
    return load_dataset("json", data_files=str(tmp_path / "rows.jsonl"), cache_dir=str(tmp_path / "cache"))["train"]


def files(dataset: Dataset, *, max_length: int = 20, chat_template: str | None = None) -> list[str]:
    tokenizer = make_tokenizer(chat=chat_template is not None)
    if chat_template is not None:
        tokenizer.chat_template = chat_template
    rows, _ = prepare_dataset(dataset, tokenizer, name="train", max_length=max_length)
    return [file["filename"] for file in rows.cache_files]


def test_the_same_code_finds_its_rows(dataset: Dataset) -> None:
    assert files(dataset)
    assert files(dataset) == files(dataset)


def test_other_settings_and_tokenizers_do_not(dataset: Dataset) -> None:
    found = [
        files(dataset),
        files(dataset, max_length=21),
        files(dataset, chat_template=template("x")),
        files(dataset, chat_template=template("y")),
    ]
    assert len({str(each) for each in found}) == 4


def test_another_version_does_not(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    first = files(dataset)
    monkeypatch.setattr(row_cache, "_digest", lambda source: "other")  # another source of this folder
    second = files(dataset)
    monkeypatch.undo()
    monkeypatch.setattr(trl_ext, "__version__", "0.0.1", raising=False)
    third = files(dataset)
    assert not set(first) & set(second)
    assert not set(first) & set(third)


def test_a_function_is_hashed_without_the_code_that_it_reaches(monkeypatch: pytest.MonkeyPatch) -> None:
    """`dill` reads the code of a function inside another, and all that it calls, which takes longer than the rows."""
    dataset = Dataset.from_list(ROWS)
    read: list[str] = []
    globalvars = dill.detect.globalvars

    def reading(function: Any, *args: Any, **kwargs: Any) -> Any:
        read.append(getattr(function, "__qualname__", ""))
        return globalvars(function, *args, **kwargs)

    monkeypatch.setattr(dill.detect, "globalvars", reading)
    prepare_dataset(dataset, make_tokenizer(), name="train", max_length=20)
    assert not read
    dataset.map(lambda row: row)
    assert read


def test_the_source_of_a_partial_is_that_of_its_function() -> None:
    assert row_cache._source(partial(prepare_dataset, name="train")) == row_cache._source(prepare_dataset) != ""


def test_the_digest_is_that_of_the_files(tmp_path: Path) -> None:
    source = tmp_path / "method.py"
    source.write_text("a = 1")
    first = row_cache._digest(str(source))
    source.write_text("a = 2")
    row_cache._digest.cache_clear()
    assert row_cache._digest(str(source)) != first


def test_a_function_without_a_source_file_is_versioned_by_the_folder_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A callable object, and what was typed into a shell: no file can be read."""

    class Doubled:
        def __call__(self, row: dict[str, int]) -> dict[str, int]:
            return {"a": 2 * row["a"]}

    assert row_cache._source(Doubled()) == ""
    assert row_cache._digest("<stdin>") == row_cache._digest("")
    versioned = row_cache.this_version(Doubled())
    assert Dataset.from_list([{"a": 2}]).map(versioned)["a"] == [4]
    monkeypatch.setattr(trl_ext, "__version__", "0.0.1", raising=False)
    assert row_cache.this_version(Doubled()) != versioned


def test_all_maps_of_the_package_are_versioned() -> None:
    """`dataset.map(f)` and `dataset.filter(f)`: `f` is wrapped, here or in the line before."""
    for path in sorted(ROOT.rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        wrapped = {
            target.id
            for node in ast.walk(tree)
            if isinstance(node, ast.Assign) and _is_wrapper(node.value)
            for target in node.targets
            if isinstance(target, ast.Name)
        }
        for node in ast.walk(tree):
            called = node.func if isinstance(node, ast.Call) else None
            if not isinstance(called, ast.Attribute) or called.attr not in ("map", "filter") or not node.args:
                continue
            if isinstance(called.value, ast.Name) and called.value.id in ("pool", "executor"):
                continue
            first = node.args[0]
            safe = _is_wrapper(first) or (isinstance(first, ast.Name) and first.id in wrapped | {"passed"})
            assert safe, f"{path}, line {node.lineno}: write `{called.attr}(this_version(...))`"


def _is_wrapper(node: ast.expr) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "this_version"
