# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""The setting `columns`: how it is written, and what it does to a dataset."""

import pytest
from dataset_rows import stream
from datasets import Dataset

from trl_ext import ExtConfig
from trl_ext.cli.parser import Parser
from trl_ext.data.column_names import parse_columns, rename_columns
from trl_ext.data.schema import DataError


ROW = {"ask": "a", "prompt": "b", "chosen": "c", "rejected": "d"}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (None, {}),
        ("", {}),
        ({"prompt": "ask"}, {"prompt": "ask"}),
        ("prompt=ask", {"prompt": "ask"}),
        ("prompt=ask, chosen=better", {"prompt": "ask", "chosen": "better"}),
        ('{"prompt": "ask"}', {"prompt": "ask"}),
    ],
)
def test_how_it_is_written(tmp_path, given, expected):
    assert parse_columns(given) == expected
    assert ExtConfig(output_dir=str(tmp_path), columns=given).columns == expected


@pytest.mark.parametrize("given", ["ask", '{"prompt": ', {"prompt": 3}, '{"prompt": ["a"]}', {"a": "x", "b": "x"}])
def test_what_it_cannot_be(given):
    with pytest.raises(ValueError, match="`columns`"):
        parse_columns(given)


@pytest.mark.parametrize("make", [Dataset.from_list, stream], ids=["map", "stream"])
def test_columns_are_renamed(make):
    assert next(iter(rename_columns(make([ROW]), "train", {"prompt": "ask"}))) == {
        "prompt": "a",
        "chosen": "c",
        "rejected": "d",
    }
    swapped = next(iter(rename_columns(make([ROW]), "train", {"chosen": "rejected", "rejected": "chosen"})))
    assert (swapped["chosen"], swapped["rejected"]) == ("d", "c")


def test_a_missing_column_is_named():
    with pytest.raises(DataError, match="The train dataset lacks the column 'x' of `columns`; it has 'ask', 'prompt'"):
        rename_columns(Dataset.from_list([ROW]), "train", {"prompt": "x"})


def test_yaml_and_the_command_line(tmp_path):
    (tmp_path / "a.yaml").write_text(f"output_dir: {tmp_path}\ncolumns: {{prompt: ask}}\ndataset_format: nectar\n")
    [config] = Parser([ExtConfig], "test").parse_args_and_config(["--config", str(tmp_path / "a.yaml")])
    assert (config.columns, config.dataset_format) == ({"prompt": "ask"}, "nectar")
    flags = ["--output_dir", str(tmp_path), "--columns", "prompt=ask", "--dataset_format", "query_responses"]
    [config] = Parser([ExtConfig], "test").parse_args_and_config(flags)
    assert (config.columns, config.dataset_format) == ({"prompt": "ask"}, "query_responses")
    with pytest.raises(ValueError, match="dataset_format"):
        Parser([ExtConfig], "test").parse_args_and_config([*flags[:-1], "nectr"])
