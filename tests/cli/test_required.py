# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""What a command cannot run without is named before anything slow is imported."""

import importlib
import subprocess
import sys

import pytest

from trl_ext import commands
from trl_ext.cli import required
from trl_ext.cli.required import check_words, example_of, required_settings
from trl_ext.commands import COMMANDS, MODEL, REWARD, Required
from trl_ext.method import Discovery, Found, Method, discover


METHOD = Method(
    name="mine",
    paper="",
    summary="Mine.",
    config="mine:Config",
    trainer="mine:Trainer",
    required=(Required(("rules",), "the rules", "rules.txt"),),
    server_settings=("my_server",),
)


@pytest.fixture
def plugin(monkeypatch):
    """A plug-in method that requires a setting, and whose decoding may name a server."""
    found = Discovery({**discover().methods, "mine": Found(METHOD, "mine", "1")})
    monkeypatch.setattr(required, "discover", lambda: found)


def problems(name: str, *words: str) -> list[str]:
    """The lines of the error about a command line."""
    with pytest.raises(ValueError) as caught:
        check_words(name, words)
    return str(caught.value).splitlines()


def test_nothing_slow_is_imported():
    """For any command that lacks something; one process for all of them, as each takes a while to start."""
    words = [*discover().methods, *(name for name, command in COMMANDS.items() if command.required), "dpo", "rrfh"]
    code = f"""
import sys
from trl_ext.cli.main import main
assert [main([word]) for word in {words}] == [2] * {len(words)}
slow = {{"torch", "transformers", "trl", "datasets", "accelerate"}} & set(sys.modules)
assert not slow, slow
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("missing:") == len(words) - 2


def test_all_that_is_missing_is_named_with_an_example():
    assert problems("best_of_n", "--reward_funcs", "r", "--seed", "3") == [
        "3 required settings are missing:",
        "  --model_name_or_path or --dataset_completions or --endpoint: the models to sample from, or completions of "
        "the dataset to score",
        "  --dataset_name or --prompt: the prompts, by Hub id, directory or file of rows, or as texts",
        "  --output_file or --prompt: the file to write, .jsonl or .parquet; not needed for texts",
        "For example:",
        *example_of("best_of_n").splitlines(),
    ]


@pytest.mark.parametrize(
    "words",
    [
        ["--model_name_or_path", "m", "--dataset_name", "d"],
        ["--model-name-or-path=m", "--datasets", "[]", "--dataset-name=d"],
        ["--config", "{recipe}"],
        ["--config={recipe}", "--model_name_or_path", "other"],
        ["--help"],
        ["--seed", "1", "--help_all"],
    ],
)
def test_given_in_a_flag_or_in_the_file(words, yaml_file):
    recipe = yaml_file("model_name_or_path: m\ndataset-name: d")
    check_words("rrhf", [word.format(recipe=recipe) for word in words])


@pytest.mark.parametrize(
    "words", [["--model_name_or_path="], ["--model_name_or_path", ""], ["--config", "{recipe}"], ["--model", "m"]]
)
def test_a_value_that_is_empty_is_none(words, yaml_file):
    recipe = yaml_file("model_name_or_path: null")
    lines = problems("chat", *(word.format(recipe=recipe) for word in words))
    assert lines[0] == "1 required setting is missing:" and lines[1].startswith("  --model_name_or_path")
    assert ("(not '--model')" in lines[1]) == (words[0] == "--model")
    assert "(not" not in problems("vas", "--model_name_or_path", "m", "--dataset_name", "d")[1]


def test_a_flag_without_its_value_is_left_to_the_parser():
    check_words("convert", ["--dataset_name", "--overwrite_output"])


def test_a_recipe_without_its_flag():
    assert problems("rrhf", "x.yaml") == ["unexpected argument 'x.yaml' (for a recipe: --config x.yaml)"]


def test_methods_require_what_they_declare(plugin):
    assert required_settings("rrhf")[0] == MODEL and REWARD not in required_settings("rrhf")
    assert REWARD in required_settings("psle") and REWARD in required_settings("proxy-rlhf")
    assert "  --rules: the rules" in problems("mine", "--model_name_or_path", "m", "--dataset_name", "d")
    assert "--rules rules.txt" in example_of("mine")


def test_a_server_of_a_decoding_stands_in_for_the_model(plugin):
    check_words("generate", ["--my_server", "http://localhost"])
    assert "or --my_server:" in problems("chat")[1]


@pytest.mark.parametrize("name", [*COMMANDS, *discover().methods])
def test_examples_give_what_is_required_in_80_columns(name):
    lines = example_of(name).splitlines()
    assert bool(lines) == bool(required_settings(name)) and all(len(line) <= 80 for line in lines)
    words = " ".join(line.strip(" \\") for line in lines).split()
    if words:
        check_words(name, words[2:])


def test_every_command_can_be_run():
    """The registry names modules and functions that exist, with all that the dispatch and the completion call."""
    for command in commands.COMMANDS.values():
        for reference in filter(None, [command.run, command.parser]):
            module, function = reference.split(":")
            assert callable(getattr(importlib.import_module(f"trl_ext.cli.{module}"), function))
