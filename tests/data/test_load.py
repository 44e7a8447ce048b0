# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Datasets from files and directories of every kind, and the errors for those that cannot be read."""

import bz2
import gzip
import json
import lzma

import datasets
import pytest
from datasets import Dataset, DatasetDict, IterableDataset
from datasets.packaged_modules.json.json import Json

from trl_ext.data import load
from trl_ext.data.load import load_dataset
from trl_ext.data.schema import DataError
from trl_ext.data.tokenization import prepare_dataset


ROWS = [
    {"prompt": "the film was", "completions": [" good", " bad"], "scores": [1.0, 0.0]},
    {"prompt": "so", "completions": [" dull"], "scores": [0.5]},
]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """Gives each test a cache of its own: `datasets` caches what it reads from files."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return str(path)


def write_lines(path, rows):
    return write(path, "".join(json.dumps(row) + "\n" for row in rows))


def write_rows(path):
    if path.suffix == ".jsonl":
        return write_lines(path, ROWS)
    if path.suffix == ".json":
        return write(path, json.dumps(ROWS, indent=1))
    Dataset.from_list(ROWS).to_parquet(path)
    return str(path)


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet"])
def test_a_file(tmp_path, suffix):
    name = write_rows(tmp_path / f"rows{suffix}")
    assert list(load_dataset(name, split="train")) == ROWS
    assert list(load_dataset(name)) == ["train"]


def test_a_csv_file(tmp_path):
    name = write(tmp_path / "rows.csv", "prompt,chosen,rejected\nthe film was, good, bad\n")
    assert list(load_dataset(name, split="train")) == [
        {"prompt": "the film was", "chosen": " good", "rejected": " bad"}
    ]


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet"])
def test_a_streamed_file(tmp_path, suffix):
    dataset = load_dataset(write_rows(tmp_path / f"rows{suffix}"), split="train", streaming=True)
    assert isinstance(dataset, IterableDataset)
    assert list(dataset) == ROWS


def test_a_stream_is_not_read_ahead(tmp_path, monkeypatch):
    """Of a large file, a stream holds one chunk: what it reads does not depend on the number of rows."""
    rows = [{"prompt": f"{number}", "filler": "x" * 1000} for number in range(4000)]
    name = write_lines(tmp_path / "rows.jsonl", rows)
    monkeypatch.setattr(load, "STREAM_CHUNK", 100_000)
    read = []
    tables = Json._generate_tables

    def counted(self, *args, **kwargs):
        for key, table in tables(self, *args, **kwargs):
            read.append(len(table))
            yield key, table

    monkeypatch.setattr(Json, "_generate_tables", counted)
    stream = load_dataset(name, split="train", streaming=True)
    assert next(iter(stream)) == rows[0]
    assert 0 < sum(read) < 400
    assert list(stream) == rows


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz"])
def test_types_that_come_later_in_a_stream(tmp_path, monkeypatch, suffix):
    """Fractions after whole numbers, also in lists and dictionaries, and text where there was nothing."""
    monkeypatch.setattr(load, "STREAM_CHUNK", 1000)
    first = {"prompt": "a" * 200, "scores": [1, 2], "rewards": {"kind": [3, None]}, "note": None}
    last = {"prompt": "b", "scores": [0.5, 1], "rewards": {"kind": [2.5, 1]}, "note": "seen", "new": True}
    name = tmp_path / f"rows{suffix}"
    lines = "\n".join(json.dumps(row) for row in [*[first] * 20, last])
    name.write_bytes(gzip.compress(lines.encode()) if suffix.endswith("gz") else lines.encode())
    rows = list(load_dataset(str(name), split="train", streaming=True))
    assert len(rows) == 21 and rows[0] == {**first, "scores": [1.0, 2.0], "new": None}
    assert rows[-1] == last


def test_types_that_do_not_go_together_are_an_error(tmp_path, monkeypatch):
    """A score that is text must not become a number, nor the other way round."""
    monkeypatch.setattr(load, "STREAM_CHUNK", 1000)
    rows = [{"prompt": "a" * 200, "score": 1}] * 20 + [{"prompt": "b", "score": "high"}]
    stream = load_dataset(write_lines(tmp_path / "rows.jsonl", rows), split="train", streaming=True)
    with pytest.raises(Exception, match="high"):
        list(stream)


def test_a_file_in_the_home_directory(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write_rows(tmp_path / "rows.jsonl")
    assert list(load_dataset("~/rows.jsonl", split="train")) == ROWS


def test_a_directory_of_files(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    write_lines(folder / "train.jsonl", ROWS)
    write_lines(folder / "test.jsonl", ROWS[:1])
    splits = load_dataset(str(folder))
    assert {name: len(split) for name, split in splits.items()} == {"train": 2, "test": 1}
    assert list(load_dataset(str(folder), split="test")) == ROWS[:1]


def test_a_directory_with_other_files_than_data(tmp_path):
    """As a folder with a model; `datasets` raises an error that is neither a ValueError nor an OSError."""
    (tmp_path / "rows.json").write_text('[{"prompt": "a"}]')
    (tmp_path / "settings.json").write_text('[{"size": 3}]')
    with pytest.raises(DataError, match=r"cannot be read: .*Its files must be data of one form: name one of them"):
        load_dataset(str(tmp_path))


def test_a_directory_written_by_save_to_disk(tmp_path):
    dataset = Dataset.from_list(ROWS)
    dataset.save_to_disk(tmp_path / "one")
    DatasetDict(train=dataset, validation=dataset.select([1])).save_to_disk(tmp_path / "two")
    assert list(load_dataset(str(tmp_path / "one"), split="train")) == ROWS
    assert list(load_dataset(str(tmp_path / "two"), split="validation")) == ROWS[1:]


def test_a_split_that_does_not_exist(tmp_path):
    name = write_rows(tmp_path / "rows.jsonl")
    with pytest.raises(DataError, match="has no split 'test'; it has 'train'"):
        load_dataset(name, split="test")
    DatasetDict(a=Dataset.from_list(ROWS), b=Dataset.from_list(ROWS)).save_to_disk(tmp_path / "two")
    with pytest.raises(DataError, match="has no split 'test'; it has 'a', 'b'"):
        load_dataset(str(tmp_path / "two"), split="test")


@pytest.mark.parametrize("name", ["no.jsonl", "no/such.parquet", "/no/such.csv", "./no.json"])
def test_a_file_that_does_not_exist(name):
    with pytest.raises(DataError, match=f"There is no file '{name}'"):
        load_dataset(name)


@pytest.mark.parametrize("name", ["./no/such", "/no/such", "~/no-such-data"])
def test_a_directory_that_does_not_exist(name):
    with pytest.raises(DataError, match=f"There is no file or directory '{name}'"):
        load_dataset(name)


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".parquet"])
@pytest.mark.parametrize("text", ["", "\n\n"])
def test_an_empty_file(tmp_path, suffix, text):
    name = write(tmp_path / f"rows{suffix}", text)
    with pytest.raises(DataError, match=r"rows.*(is empty|cannot be read|has no rows)"):
        load_dataset(name)


def test_a_line_that_is_not_json(tmp_path):
    name = write(tmp_path / "rows.jsonl", json.dumps(ROWS[0]) + '\n{"prompt": "x", \n')
    with pytest.raises(DataError, match=r"rows.jsonl' cannot be read: line 2 is not valid JSON"):
        load_dataset(name)


CHAT_PROMPT = {"prompt": [{"role": "user", "content": "x"}]}
CHAT_COMPLETION = {"completions": [[{"role": "assistant", "content": "x"}]], "scores": [1.0]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (CHAT_PROMPT, "Row 2 of .*, column 'prompt': must be text"),
        (CHAT_COMPLETION, r"Row 2 of .*, column 'completions': \[0\] must be text"),
        ({"scores": ["high", "low"]}, r"Row 2 of .*, column 'scores': \[0\] must be a number, got 'high'"),
        ({"scores": "high"}, "Row 2 of .*, column 'scores': must be a list"),
        ({"scores": [float("nan"), 1.0]}, r"Row 2 of .*, column 'scores': \[0\] (is nan|must be a number)"),
    ],
)
@pytest.mark.parametrize("suffix", [".jsonl", ".json"])
def test_a_row_of_another_type_is_kept_and_named(tmp_path, tiny_tokenizer, suffix, change, message):
    rows = [*ROWS, ROWS[0] | change]
    path = tmp_path / f"rows{suffix}"
    name = write_lines(path, rows) if suffix == ".jsonl" else write(path, json.dumps(rows))
    with pytest.raises(DataError, match=message):
        prepare_dataset(load_dataset(name, split="train"), tiny_tokenizer, name="train", max_length=0)


def test_a_row_of_another_type_late_in_a_large_file(tmp_path):
    """By default `datasets` infers the types from the first ten megabytes."""
    name = write_lines(tmp_path / "rows.jsonl", [ROWS[0] | {"prompt": "x" * 100_000}] * 110 + [ROWS[0] | CHAT_PROMPT])
    assert (tmp_path / "rows.jsonl").stat().st_size > 10 << 20
    assert load_dataset(name, split="train")[-1]["prompt"] == CHAT_PROMPT["prompt"]


def test_integers_and_floats_mix(tmp_path):
    rows = [ROWS[0] | {"weight": 1, "scores": [1, 0.5]}, ROWS[1] | {"weight": 0.5, "scores": [2]}]
    name = write_lines(tmp_path / "rows.jsonl", rows)
    assert load_dataset(name, split="train")["weight"] == [1.0, 0.5]


@pytest.mark.parametrize(("suffix", "text"), [(".json", "[{]"), (".parquet", "prompt,chosen\n")])
def test_a_file_of_another_format_than_its_suffix(tmp_path, suffix, text):
    with pytest.raises(DataError, match=f"rows{suffix}' cannot be read"):
        load_dataset(write(tmp_path / f"rows{suffix}", text))


# ---------------------------------------------------------------------------------------------------- compressed files


@pytest.mark.parametrize(("suffix", "opener"), [(".gz", gzip.open), (".xz", lzma.open), (".bz2", bz2.open)])
@pytest.mark.parametrize("kind", [".jsonl", ".json", ".csv", ".tsv"])
@pytest.mark.parametrize("streaming", [False, True], ids=["table", "stream"])
def test_a_compressed_file(tmp_path, kind, suffix, opener, streaming):
    row = {"prompt": "the film was", "chosen": " good", "rejected": " bad"}
    sign = {".csv": ",", ".tsv": "\t"}.get(kind)
    text = f"{sign.join(row)}\n{sign.join(row.values())}\n" if sign else json.dumps(row) + "\n"
    with opener(tmp_path / f"rows{kind}{suffix}", "wt", encoding="utf-8") as file:
        file.write(text)
    assert list(load_dataset(str(tmp_path / f"rows{kind}{suffix}"), split="train", streaming=streaming)) == [row]


def test_a_tsv_file(tmp_path):
    name = write(tmp_path / "rows.tsv", "prompt\tchosen\trejected\nthe film, was\t good\t bad\n")
    assert list(load_dataset(name, split="train")) == [
        {"prompt": "the film, was", "chosen": " good", "rejected": " bad"}
    ]


def test_the_package_for_zstandard_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("trl_ext.data.load.find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"zst' cannot be read without the package `zstandard`: pip install"):
        load_dataset(write(tmp_path / "rows.jsonl.zst", "x"))


@pytest.mark.parametrize("name", ["rows.txt", "rows.parquet.gz", "rows.zip"])
def test_a_file_of_another_type_is_not_looked_for_on_the_hub(tmp_path, name):
    with pytest.raises(DataError, match=r"is a file of a type that is not read: use .jsonl, .json"):
        load_dataset(write(tmp_path / name, "x"))


def test_a_damaged_file_is_named(tmp_path):
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"prompt": "a"}\n' * 1000)[:-20])
    with pytest.raises(DataError, match=r"rows.jsonl.gz' cannot be read"):
        load_dataset(str(path))
