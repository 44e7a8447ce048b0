# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Dataclasses from YAML and flags: what is converted, and which errors name what."""

import dataclasses
from typing import ClassVar

import pytest

from trl_ext.cli.help import sections
from trl_ext.cli.parser import Parser
from trl_ext.training.config import ExtConfig


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
            ("text: [a]", "`text` must be text"),
            ("kind: step", "`kind` must be one of no, steps, epoch, got 'step'; did you mean steps?"),
            ("many: [1, x]", "`many` must be a number, got 'x'"),
            ("mapping: [1]", "`mapping` must be a"),
        ],
    )
    def test_refused_with_file_key_and_value(self, yaml_file, line, message):
        path = yaml_file(line)
        with pytest.raises(ValueError, match=f"{path}: {message}"):
            Parser([Fields], prog="p").parse_args_and_config(["--config", path])

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

    def test_environment_variables_are_no_field(self, yaml_file):
        path = yaml_file("number: 2\nenv: {A: 7}")
        [fields] = Parser([Fields], prog="p").parse_args_and_config(["--config", path])
        assert fields.number == 2

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

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (["--number", "x"], "--number must be a whole number, got 'x'"),
            (["--kind=step"], "--kind must be one of no, steps, epoch, got 'step'; did you mean steps?"),
            (["--number"], "--number needs a value"),
            (["--many", "1", "x"], "--many must be a number, got 'x'"),
            (["--flag", "maybe"], "--flag must be true or false, got 'maybe'"),
        ],
    )
    def test_a_bad_flag_is_named_as_a_bad_key_is(self, words, message):
        with pytest.raises(ValueError) as caught:
            Parser([Fields], prog="p").parse_args_and_config(words)
        assert str(caught.value) == message

    @pytest.mark.parametrize(("words", "value"), [(["--sure"], True), (["--sure", "false"], False), ([], None)])
    def test_a_boolean_alone_is_true_also_where_its_default_is_none(self, words, value):
        @dataclasses.dataclass
        class Maybe:
            sure: bool | None = None

        [fields] = Parser([Maybe], prog="p").parse_args_and_config(words)
        assert fields.sure is value

    def test_everything_that_is_wrong_is_named_at_once(self, yaml_file):
        path = yaml_file("number: x\nnumbr: 1\nold: 2\nonly_false: true\nrate: fast")

        @dataclasses.dataclass
        class Strict(Fields):
            refused_settings: ClassVar = {"old": "called `rate` now"}
            restricted_settings: ClassVar = {"only_false": (lambda value: not value, "it has no use here")}
            only_false: bool = False

        words = ["--config", path, "--kind", "step", "--flag", "maybe", "--txt", "a", "--text"]
        with pytest.raises(ValueError) as caught:
            Parser([Strict], prog="p").parse_args_and_config(words)
        assert str(caught.value).splitlines() == [
            "9 settings are wrong:",
            f"  {path}: unknown key 'numbr'; did you mean 'number'?",
            f"  {path}: `old`: called `rate` now",
            "  unknown flag '--txt'; did you mean '--text'?",
            f"  {path}: `number` must be a whole number, got 'x'",
            f"  {path}: `rate` must be a number, got 'fast'",
            "  --kind must be one of no, steps, epoch, got 'step'; did you mean steps?",
            "  --flag must be true or false, got 'maybe'",
            "  --text needs a value",
            "  `only_false` cannot be True: it has no use here.",
        ]

    @pytest.mark.parametrize(("words", "value"), [(["a", "b"], ["a", "b"]), (["a"], "a"), (None, ["a"])])
    def test_a_text_or_a_list(self, yaml_file, words, value):
        """One word is a text: `optim_target_modules` takes a pattern or a list of names."""

        @dataclasses.dataclass
        class Either:
            names: None | str | list[str] = "all"  # noqa: RUF036, transformers writes it so

        flags = ["--config", yaml_file("names: [a]")] if words is None else ["--names", *words]
        [fields] = Parser([Either], prog="p").parse_args_and_config(flags)
        assert fields.names == value

    @pytest.mark.parametrize(("words", "value"), [(["--config", "{}"], 3), ([], 0)])
    def test_flags_that_are_no_field(self, yaml_file, words, value):
        """What another program reads, such as the launcher: YAML and command line alike."""
        parser = Parser([Fields], prog="p")
        parser.add_argument("--other", type=int, default=0)
        namespace = parser.parse_flags([word.format(yaml_file("other: 3.0")) for word in words])
        assert parser.other_flags(namespace) == {"other": value}


@pytest.mark.parametrize("module", ["mine", "mine.config"])
def test_the_settings_of_a_method_come_first_also_of_one_in_a_single_module(module):
    own = dataclasses.make_dataclass("MineConfig", [("knots", int, 3)], bases=(ExtConfig,), namespace={})
    own.__module__ = module
    first, shared, theirs = sections(Parser([own], prog="trl-ext mine"))
    assert first.title == "MineConfig, the settings of mine" and [each.dest for each in first.actions] == ["knots"]
    assert "num_generations" not in [each.dest for each in [*first.actions, *theirs.actions]] and not shared.upstream


def test_help_has_meaning_choices_and_default(monkeypatch):
    """The class's own fields first; a meaning goes on under itself; a long flag has a line of its own."""
    monkeypatch.setenv("COLUMNS", "80")

    @dataclasses.dataclass
    class Base:
        rate: float | None = dataclasses.field(default=0.1, metadata={"help": "100%% of it."})
        a_flag_with_quite_a_long_name: bool = dataclasses.field(default=True, metadata={"help": "Whether."})

    @dataclasses.dataclass
    class Own(Base):
        kind: str = dataclasses.field(default="no", metadata={"choices": ["no", "steps"], "help": "word " * 12})

    text = Parser([Own], prog="p", description="What p does.", epilog="The end.").format_help()
    assert (
        text
        == f"""\
usage: p [--config FILE.yaml] [--FIELD VALUE ...]

What p does.

Own:
  --kind {{no,steps}}             {"word " * 8}word
                                word word word (default: no)
  --rate X                      100% of it. (default: 0.1)
  --a_flag_with_quite_a_long_name [true|false]
                                Whether. (default: True)

The end.
"""
    )


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["--words", "a", "b", "--number", "2", "--words", "c"], ["a", "b", "c"]),
        (["--words", "a", "--words=b", "--words", "c", "d"], ["a", "b", "c", "d"]),
        (["--words=a", "--number", "2", "--words=b"], ["a", "b"]),
        (["--words=a"], ["a"]),
    ],
)
def test_a_flag_of_several_values_that_is_given_several_times(words, found):
    """All of them count, in their order; a flag of one value has its last."""
    [fields] = Parser([Fields], prog="p").parse_args_and_config(words)
    assert fields.words == found
    [fields] = Parser([Fields], prog="p").parse_args_and_config([*words, "--number", "3", "--number=4"])
    assert (fields.words, fields.number) == (found, 4)
