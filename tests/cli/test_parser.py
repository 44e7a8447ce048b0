# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Dataclasses from YAML and flags: what is converted, and what is refused with which words."""

import dataclasses
import os
import textwrap
from typing import ClassVar

import pytest

from trl_ext.cli.parser import Parser, read_config, set_environment, split_config


@pytest.fixture
def yaml_file(tmp_path):
    def write(text: str) -> str:
        path = tmp_path / "config.yaml"
        path.write_text(textwrap.dedent(text))
        return str(path)

    return write


@dataclasses.dataclass
class Fields:
    number: int = 1
    rate: float | None = 0.1
    flag: bool = True
    text: str | None = None
    kind: str = dataclasses.field(default="no", metadata={"choices": ["no", "steps", "epoch"]})
    many: list[float] | None = None
    words: list[str] | None = None
    mapping: dict | str | None = None


class TestYamlValues:
    @pytest.mark.parametrize(
        ("line", "value"),
        [
            ("number: 3", 3),
            ("number: 3.0", 3),
            ("number: '3'", 3),
            ("rate: 2e-5", 2e-5),  # YAML 1.1 reads this as a string
            ("rate: 1", 1.0),
            ("rate: null", None),
            ("flag: no", False),
            ("flag: 'false'", False),
            ("text: hello", "hello"),
            ("text: 12", "12"),
            ("text: true", "true"),
            ("kind: no", "no"),  # and this as false
            ("kind: epoch", "epoch"),
            ("many: [1, 2.5]", [1.0, 2.5]),
            ("many: 3", [3.0]),
            ("words: one", ["one"]),
            ("mapping: {a: [1, 2]}", {"a": [1, 2]}),
            ("mapping: '{\"a\": 1}'", '{"a": 1}'),
        ],
    )
    def test_converted(self, yaml_file, line, value):
        [fields] = Parser([Fields], prog="p").parse_args_and_config(["--config", yaml_file(line)])
        got = getattr(fields, line.partition(":")[0])
        assert got == value
        assert type(got) is type(value)

    @pytest.mark.parametrize(
        ("line", "message"),
        [
            ("number: three", "`number` must be a whole number, got 'three'"),
            ("number: 2.5", "`number` must be a whole number, got 2.5"),
            ("number: true", "`number` must be a whole number, got True"),
            ("number: [1]", r"`number` must be a whole number, got \[1\]"),
            ("number: null", "`number` must be a whole number, got None"),
            ("rate: fast", "`rate` must be a number, got 'fast'"),
            ("flag: maybe", "`flag` must be true or false, got 'maybe'"),
            ("text: [a]", "`text` must be a text"),
            ("kind: step", "`kind` must be one of no, steps, epoch, got 'step'; did you mean steps?"),
            ("many: [1, x]", "`many` must be a number, got 'x'"),
            ("mapping: [1]", "`mapping` must be a"),
        ],
    )
    def test_refused_with_file_key_and_value(self, yaml_file, line, message):
        path = yaml_file(line)
        with pytest.raises(ValueError, match=f"{path}: {message}"):
            Parser([Fields], prog="p").parse_args_and_config(["--config", path])

    def test_a_key_that_comes_twice(self, yaml_file):
        path = yaml_file("number: 3\ntext: a\nnumber: 4")
        with pytest.raises(ValueError, match="the key 'number' comes twice, in line 3 again"):
            read_config(path)

    def test_a_key_that_comes_twice_in_two_spellings(self, yaml_file):
        path = yaml_file("num-iterations: 3\nnum_iterations: 4")
        with pytest.raises(ValueError, match=f"{path}: 'num-iterations' and 'num_iterations' are two spellings"):
            read_config(path)
        nested = {"mapping": {"a-b": 1, "a_b": 2}}  # only keys of ours are spelt both ways
        assert read_config(yaml_file("mapping: {a-b: 1, a_b: 2}")) == nested

    def test_what_is_merged_is_replaced(self, yaml_file):
        """As YAML means it, also where what is merged was merged itself."""
        text = (
            "a: &a {one: 1, two: 1}\nb: &b\n  <<: *a\n  two: 2\nc:\n  <<: *b\n  one: 3\nd:\n  <<: [*b, *a]\n  two: 4"
        )
        config = read_config(yaml_file(text))
        assert (config["b"], config["c"]) == ({"one": 1, "two": 2}, {"one": 3, "two": 2})
        assert config["d"] == {"one": 1, "two": 4}
        with pytest.raises(ValueError, match="the key 'y' comes twice, in line 3 again"):
            read_config(yaml_file("a: &a {x: 1}\nb: {<<: *a, y: 2,\n  y: 3}"))

    def test_a_folder_is_no_config(self, tmp_path):
        with pytest.raises(OSError, match="is a folder: name a YAML file in it"):
            read_config(str(tmp_path))

    def test_null_switches_off_what_it_does_in_scripts(self, yaml_file):
        @dataclasses.dataclass
        class Off:
            none_is_zero: ClassVar = ("longest",)
            longest: int = 8

        [fields] = Parser([Off], prog="p").parse_args_and_config(["--config", yaml_file("longest: null")])
        assert fields.longest == 0

    def test_flags_win(self, yaml_file):
        path = yaml_file("number: 3\ntext: file")
        [fields] = Parser([Fields], prog="p").parse_args_and_config(["--number", "4", "--config", path])
        assert (fields.number, fields.text) == (4, "file")

    def test_hyphens_do(self, yaml_file):
        @dataclasses.dataclass
        class Two:
            two_words: int = 1

        [fields] = Parser([Two], prog="p").parse_args_and_config(["--config", yaml_file("two-words: 2")])
        assert fields.two_words == 2

    def test_unknown_key_names_file_and_nearest(self, yaml_file):
        path = yaml_file("numbr: 3")
        with pytest.raises(ValueError, match=f"{path}: unknown key 'numbr'; did you mean 'number'?"):
            Parser([Fields], prog="p").parse_args_and_config(["--config", path])

    @pytest.mark.parametrize("words", [["--numbr", "3"], ["--numbr=3"]])
    def test_unknown_flag_names_the_nearest(self, words):
        with pytest.raises(ValueError, match="unknown flag '--numbr'; did you mean '--number'"):
            Parser([Fields], prog="p").parse_args_and_config(words)

    def test_abbreviations_are_unknown_flags(self):
        with pytest.raises(ValueError, match="unknown flag '--num'"):
            Parser([Fields], prog="p").parse_args_and_config(["--num", "3"])

    def test_forgotten_config(self):
        with pytest.raises(ValueError, match=r"unexpected argument 'x\.yaml' \(for a recipe: --config x\.yaml\)"):
            Parser([Fields], prog="p").parse_args_and_config(["x.yaml"])

    @pytest.mark.parametrize("words", [["--number", "x"], ["--kind", "step"], ["--number"]])
    def test_bad_flag_is_one_line(self, words, capsys):
        with pytest.raises(SystemExit) as left:
            Parser([Fields], prog="p").parse_args_and_config(words)
        assert left.value.code == 2
        [line] = capsys.readouterr().err.splitlines()
        assert line.startswith(f"p: error: argument {words[0]}")


class TestConfigFile:
    def test_split(self):
        assert split_config(["--a", "1", "--config", "f.yaml", "--b"]) == ("f.yaml", ["--a", "1", "--b"])
        assert split_config(["--config=f.yaml"]) == ("f.yaml", [])
        assert split_config(["--a"]) == ("", ["--a"])

    @pytest.mark.parametrize("words", [["--config"], ["--config", "--a"], ["--config="]])
    def test_config_without_a_file(self, words):
        with pytest.raises((ValueError, FileNotFoundError), match="config"):
            Parser([Fields], prog="p").parse_args_and_config(words)

    def test_config_twice(self):
        with pytest.raises(ValueError, match="2 times"):
            split_config(["--config", "a", "--config", "b"])

    def test_missing(self):
        with pytest.raises(FileNotFoundError, match=r"config file not found: /no/file\.yaml"):
            read_config("/no/file.yaml")

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("a: [1, 2\nb: 3", "is no YAML: .*line 2, column 2"),
            ("- a\n- b", "must contain a YAML mapping .* but is a list"),
            ("", "must contain a YAML mapping .* but is empty"),
            ("just words", "must contain a YAML mapping .* but is a str"),
        ],
    )
    def test_no_mapping(self, yaml_file, text, message):
        with pytest.raises(ValueError, match=f"(?s)config.yaml {message}"):
            read_config(yaml_file(text))

    def test_environment_is_set_and_is_no_field(self, yaml_file, monkeypatch):
        monkeypatch.setenv("TRL_EXT_TEST_VARIABLE", "before")
        path = yaml_file("number: 2\nenv:\n  TRL_EXT_TEST_VARIABLE: 7")
        set_environment(["--config", path])
        assert os.environ["TRL_EXT_TEST_VARIABLE"] == "7"
        [fields] = Parser([Fields], prog="p").parse_args_and_config(["--config", path])
        assert fields.number == 2

    def test_environment_that_is_no_mapping(self, yaml_file):
        with pytest.raises(ValueError, match="`env` must be a mapping"):
            set_environment(["--config", yaml_file("env: [A]")])
