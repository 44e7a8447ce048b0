# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""The prompts of the IMDB task: cut from reviews, found by their hashes; and the models that come with them."""

import hashlib
import json
import re

import datasets
import pyarrow
import pytest
from conftest import REPOSITORY
from pyarrow import parquet

from benchmarks.harness.models import MODELS_7M
from benchmarks.harness.text import read_rows
from benchmarks.quality import imdb, imdb_prompts
from benchmarks.quality.imdb_prompts import FILES, HASHES, digest, main, opening, read_hashes


WORDS = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen".split()
REVIEW = " ".join(WORDS)


@pytest.mark.parametrize(
    ("review", "prompt"),
    [
        (f"{REVIEW} seventeen", REVIEW),
        (REVIEW, REVIEW),
        ("A short one. ", "A short one."),
        (f"  {REVIEW.replace(' ', '   ', 3)} more", REVIEW),
        (f"{REVIEW}.<br /><br />More.", f"{REVIEW}.\nMore."),  # a word goes on over a line break without spaces
        (f"{REVIEW}. <br /> <br/>More.", f"{REVIEW}.\nMore."),
        (REVIEW.replace("two", "two\x85three") + " more", REVIEW.replace("two", "two\x85three")),
        (REVIEW.replace(" ", "\xa0", 1).replace(" ", "\t", 1) + " more", REVIEW),
        (REVIEW.replace("two", "é&amp;<sp?)") + " more", REVIEW.replace("two", "é&amp;<sp?)")),
    ],
)
def test_a_prompt_is_the_first_sixteen_words(review, prompt):
    """By hand: breaks are line breaks, runs of spaces one space, and words what single spaces separate."""
    assert opening(review) == prompt


# ------------------------------------------------------------------------------------------------------- the files


def review_of(name, i):
    return f"{name} number  {i}<br /><br />{REVIEW} and so on"


@pytest.fixture
def stored(tmp_path):
    """Hashes of three and two prompts, one of which comes twice."""
    folder = tmp_path / "hashes"
    folder.mkdir()
    for name, rows in zip(FILES, ([2, 0, 2], [5, 4]), strict=True):
        lines = [hashlib.sha256(f"film number {i}\n{' '.join(WORDS[:14])}".encode()).hexdigest() for i in rows]
        (folder / f"{name}.sha256").write_text("".join(f"{line}\n" for line in lines))
    return folder


def dataset_of(folder, rows):
    """A folder as that of the public dataset: a .parquet file a split."""
    folder.mkdir(parents=True)
    for split, half in (("train", rows[::2]), ("test", rows[1::2])):
        table = pyarrow.table({"text": [review_of("film", i) for i in half], "label": [0] * len(half)})
        parquet.write_table(table, folder / f"{split}-00000-of-00001.parquet")
    return folder


def prompts_in(folder, name):
    return [row["prompt"] for row in read_rows(str(folder / f"{name}.jsonl"))]


def run(dataset, stored, tmp_path, *more):
    return main(["--dataset", str(dataset), "--hashes", str(stored), "--output", str(tmp_path / "data"), *more])


def test_the_files_have_the_rows_of_the_hashes_in_their_order(tmp_path, stored):
    dataset = dataset_of(tmp_path / "imdb" / "plain_text", range(20))
    assert run(tmp_path / "imdb", stored, tmp_path) == 0
    train, evaluation = (prompts_in(tmp_path / "data", name) for name in FILES)
    assert [prompt.partition("\n")[0] for prompt in train] == ["film number 2", "film number 0", "film number 2"]
    assert [digest(prompt) for prompt in train] == read_hashes(stored / f"{FILES[0]}.sha256")
    assert [digest(prompt) for prompt in evaluation] == read_hashes(stored / f"{FILES[1]}.sha256")
    assert run(dataset / "train-00000-of-00001.parquet", stored, tmp_path / "one") == 1  # 5 is in the other split


def test_the_original_archive_gives_the_same(tmp_path, stored):
    for i in range(8):
        folder = tmp_path / "aclImdb" / ("test", "train")[i % 2] / ("neg", "pos")[i % 3 > 0]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{i}_7.txt").write_text(review_of("film", i))
    (tmp_path / "aclImdb" / "README").write_text("no review")
    assert run(tmp_path / "aclImdb", stored, tmp_path) == 0
    assert len(prompts_in(tmp_path / "data", FILES[0])) == 3


def test_a_name_is_that_of_a_dataset_of_the_hub(tmp_path, stored, monkeypatch):
    asked = []

    def load_dataset(name):
        asked.append(name)
        rows = [{"text": review_of("film", i)} for i in range(6)]
        return datasets.DatasetDict(
            train=datasets.Dataset.from_list(rows[:3]), test=datasets.Dataset.from_list(rows[3:])
        )

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert main(["--hashes", str(stored), "--output", str(tmp_path / "data")]) == 0
    assert asked == ["stanfordnlp/imdb"] and len(prompts_in(tmp_path / "data", FILES[1])) == 2


def test_missing_rows_are_named_and_nothing_is_written(tmp_path, stored, capsys):
    """Two of three training rows come from review 2, which the dataset lacks; the evaluation has all of its rows."""
    dataset = dataset_of(tmp_path / "imdb", [0, 1, 4, 5])
    assert run(dataset, stored, tmp_path) == 1
    said = capsys.readouterr()
    key = read_hashes(stored / f"{FILES[0]}.sha256")[0]
    assert "imdb_prompts_train.jsonl: 2 of 3 rows are not in the dataset" in said.err
    assert f"line 1 of {FILES[0]}.sha256: {key}" in said.err and f"line 3 of {FILES[0]}" in said.err
    assert "line 2 of" not in said.err and "--allow_missing" in said.err
    assert not (tmp_path / "data" / f"{FILES[0]}.jsonl").exists()
    assert len(prompts_in(tmp_path / "data", FILES[1])) == 2
    assert run(dataset, stored, tmp_path, "--allow_missing") == 1
    assert len(prompts_in(tmp_path / "data", FILES[0])) == 1


def test_bad_input_is_named(tmp_path, stored, capsys, monkeypatch):
    empty = tmp_path / "empty"
    empty.mkdir()
    other = tmp_path / "other.parquet"
    parquet.write_table(pyarrow.table({"review": ["a"]}), other)
    text = tmp_path / "rows.jsonl"
    text.write_text("{}\n")

    def offline(name):
        raise ConnectionError("no network")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    for dataset, message in (
        (empty, "has no .parquet files and no reviews as .txt files"),
        (other, "other.parquet has no column 'text', only review"),
        (text, "rows.jsonl is not a .parquet file"),
        (tmp_path / "nowhere", "nowhere does not exist"),
        ("stanfordnlp/imdb", "stanfordnlp/imdb could not be loaded: no network\nWithout a network, copy"),
    ):
        assert run(dataset, stored, tmp_path) == 2
        assert message in capsys.readouterr().err
    (stored / f"{FILES[1]}.sha256").write_text("abc\n")
    with pytest.raises(ValueError, match=rf"{FILES[1]}\.sha256, line 1: 'abc' is not a SHA-256"):
        run(empty, stored, tmp_path)


def test_the_stored_hashes_are_those_of_the_task():
    """6,000 and 600 rows (recipes/rrhf/README.md); eight reviews come twice in the first file, none in both."""
    train, evaluation = (read_hashes(HASHES / f"{name}.sha256") for name in FILES)
    assert (len(train), len(set(train)), len(evaluation), len(set(evaluation))) == (6000, 5992, 600, 600)
    assert not set(train) & set(evaluation)


# -------------------------------------------------------------------------------------------- the suite, the models


def test_the_suite_says_how_to_make_prompts_that_are_missing(tmp_path):
    words = ["--method", "psle", "--allow_dirty", "--work", str(tmp_path / "work"), "--output", str(tmp_path)]
    with pytest.raises(SystemExit, match=r"--train: there is no file .*benchmarks\.quality\.imdb_prompts. makes"):
        imdb.SUITE.main([*words, "--data", str(tmp_path)])
    with pytest.raises(SystemExit, match=r"--model: there is no model .*imdb-7m"):
        imdb.SUITE.main([*words, "--models", str(tmp_path)])


def test_the_suite_finds_models_and_prompts_where_they_are_made():
    options = imdb.SUITE._options(["--method", "vas"])
    task = imdb.SUITE.task_of(options)
    assert task.train == str(REPOSITORY / "data" / f"{FILES[0]}.jsonl")
    assert task.evaluation == str(REPOSITORY / "data" / f"{FILES[1]}.jsonl")
    assert task.model == str(MODELS_7M / "imdb-7m") and task.reward == str(MODELS_7M / "imdb-7m-reward")
    assert (REPOSITORY / "recipes/quickstart/models/imdb-2m").samefile(task.small)
    assert imdb_prompts.DATA == REPOSITORY / "data"


@pytest.mark.skipif(not MODELS_7M.is_dir(), reason="the distribution leaves these models out")
@pytest.mark.parametrize("name", ["imdb-7m", "imdb-7m-reward"])
def test_a_model_is_what_its_card_says(name):
    folder = MODELS_7M / name
    card = (folder / "README.md").read_text(encoding="utf-8")
    stated = dict(re.findall(r"^\| `([\w.]+)` \| `([0-9a-f]{64})` \|$", card, flags=re.MULTILINE))
    found = {path.name: path for path in folder.iterdir() if path.name != "README.md"}
    assert stated == {file: hashlib.sha256(path.read_bytes()).hexdigest() for file, path in found.items()}
    config = json.loads((folder / "config.json").read_text())
    assert config["dtype"] == "bfloat16" and "bf16" in card and "license: apache-2.0" in card
    assert f"hidden size {config['hidden_size']}, {config['num_hidden_layers']} layers" in card
    tokenizer = REPOSITORY / "recipes/quickstart/models/imdb-2m/tokenizer.json"
    assert (folder / "tokenizer.json").read_bytes() == tokenizer.read_bytes()  # value models of both sizes guide both
