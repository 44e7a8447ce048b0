# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""The YAML file of `--config`: found on the command line, read strictly, and its `env` set."""

import os

import pytest

from trl_ext.cli.config_file import read_config, set_environment, split_config


def test_a_key_that_comes_twice(yaml_file):
    path = yaml_file("number: 3\ntext: a\nnumber: 4")
    with pytest.raises(ValueError, match="the key 'number' appears twice, the second time in line 3"):
        read_config(path)


def test_a_key_that_comes_twice_in_two_spellings(yaml_file):
    path = yaml_file("num-iterations: 3\nnum_iterations: 4")
    with pytest.raises(ValueError, match=f"{path}: 'num-iterations' and 'num_iterations' are two spellings"):
        read_config(path)
    nested = {"mapping": {"a-b": 1, "a_b": 2}}  # only keys of ours are spelt both ways
    assert read_config(yaml_file("mapping: {a-b: 1, a_b: 2}")) == nested


def test_what_is_merged_is_replaced(yaml_file):
    """As YAML means it, also where what is merged was merged itself."""
    text = "a: &a {one: 1, two: 1}\nb: &b\n  <<: *a\n  two: 2\nc:\n  <<: *b\n  one: 3\nd:\n  <<: [*b, *a]\n  two: 4"
    config = read_config(yaml_file(text))
    assert (config["b"], config["c"]) == ({"one": 1, "two": 2}, {"one": 3, "two": 2})
    assert config["d"] == {"one": 1, "two": 4}
    with pytest.raises(ValueError, match="the key 'y' appears twice, the second time in line 3"):
        read_config(yaml_file("a: &a {x: 1}\nb: {<<: *a, y: 2,\n  y: 3}"))


def test_a_folder_is_not_a_config(tmp_path):
    with pytest.raises(OSError, match="is a folder: name a YAML file in it"):
        read_config(str(tmp_path))


def test_split():
    assert split_config(["--a", "1", "--config", "f.yaml", "--b"]) == ("f.yaml", ["--a", "1", "--b"])
    assert split_config(["--config=f.yaml"]) == ("f.yaml", [])
    assert split_config(["--a"]) == ("", ["--a"])


@pytest.mark.parametrize("words", [["--config"], ["--config", "--a"], ["--config="]])
def test_config_without_a_file(words):
    with pytest.raises((ValueError, FileNotFoundError), match="config"):
        split_config(words)


def test_config_twice():
    with pytest.raises(ValueError, match="2 times"):
        split_config(["--config", "a", "--config", "b"])


def test_missing():
    with pytest.raises(FileNotFoundError, match=r"config file not found: /no/file\.yaml"):
        read_config("/no/file.yaml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1, 2\nb: 3", "is not valid YAML: .*line 2, column 2"),
        ("- a\n- b", "must contain a YAML mapping .* but is a list"),
        ("", "must contain a YAML mapping .* but is empty"),
        ("just words", "must contain a YAML mapping .* but is a str"),
    ],
)
def test_no_mapping(yaml_file, text, message):
    with pytest.raises(ValueError, match=f"(?s)config.yaml {message}"):
        read_config(yaml_file(text))


def test_environment_is_set_and_is_no_field(yaml_file, monkeypatch):
    monkeypatch.setenv("TRL_EXT_TEST_VARIABLE", "before")
    path = yaml_file("number: 2\nenv:\n  TRL_EXT_TEST_VARIABLE: 7")
    set_environment(["--config", path])
    assert os.environ["TRL_EXT_TEST_VARIABLE"] == "7"


def test_environment_that_is_no_mapping(yaml_file):
    with pytest.raises(ValueError, match="`env` must be a mapping"):
        set_environment(["--config", yaml_file("env: [A]")])
