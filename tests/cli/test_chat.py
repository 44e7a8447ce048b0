# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""`trl-ext chat`: the conversation, its commands and Ctrl-C, mostly with policies that need no model."""

import io
import json
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
from conftest import make_tokenizer

from trl_ext.cli import generate
from trl_ext.cli.chat import COMMANDS, ChatArguments, Conversation, Ended, _converse, main, make_parser, respond
from trl_ext.cli.parser import Parser
from trl_ext.data.completion import Completion
from trl_ext.data.resumable_file import ResumableFile
from trl_ext.generation_settings import GenerationSettings
from trl_ext.inference.completer import Completer
from trl_ext.inference.policy import GuideWeights, Policy
from trl_ext.upstream import parser_actions


SETTINGS = GenerationSettings(num_generations=1, max_completion_length=5)


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


class Terminal(io.StringIO):
    def isatty(self):
        return True


def policy_of(tokenizer, answers, **fields):
    """A policy that gives the next of `answers`, part by part; an exception among the parts is raised."""

    def stream(ids, settings, show):
        parts = next(answers)
        for part in parts:
            if not isinstance(part, str):
                raise part
            show(part)
        return Completion("".join(parts), [1], True)

    return Policy("scripted", tokenizer, lambda ids, settings: [], stream=stream, **fields)


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer(chat=True)


@pytest.fixture
def conversation(tokenizer, monkeypatch):
    """A factory of conversations on a terminal: answers -> a conversation."""

    def make(*answers, **fields):
        monkeypatch.setattr(sys, "stdin", Terminal())
        completer = Completer([policy_of(tokenizer, iter(answers), **fields)], SETTINGS)
        return Conversation(completer, [], ResumableFile("out.jsonl", {}), [], 0)

    return make


def contents(messages):
    return [message["content"] for message in messages]


def guided(tokenizer, values):
    """A policy whose answers are its weights."""

    def change(changed):
        if set(changed) - {"helpful", "brief"}:
            raise ValueError(f"there is no {changed}")
        return guided(tokenizer, changed)

    answers = iter(lambda: [str(values)], None)
    return policy_of(tokenizer, answers, weights=GuideWeights(values, change, {"helpful": "rewards of 1 ± 2"}))


# ------------------------------------------------------------------------------------------------------------- Ctrl-C


def test_ctrl_c_stops_the_answer_and_keeps_what_was_shown(conversation, capsys):
    """Before the first piece the message is not kept: two messages of the user in a row are refused by templates."""
    talk = conversation(["good"], ["a ", "long", KeyboardInterrupt()], [KeyboardInterrupt()], ["end"])
    for line in ("film", "plot", "cast", "music"):
        respond(talk, line)
    assert contents(talk.messages) == ["film", "good", "plot", "a long", "music", "end"]
    rows = [json.loads(line) for line in Path("out.jsonl").read_text().splitlines()]
    assert [(contents(row["completions"][0]), row["ended"]) for row in rows] == [
        (["good"], [True]),
        (["a long"], [False]),
        (["end"], [True]),
    ]
    assert capsys.readouterr().err.splitlines() == ["", "(stopped)", "", "(stopped; your message is not kept)"]


def test_ctrl_c_twice_at_the_prompt_ends(conversation, monkeypatch, capsys):
    talk = conversation(["good"])
    typed = iter([KeyboardInterrupt(), "film", KeyboardInterrupt(), KeyboardInterrupt(), "never"])

    def read_line():
        line = next(typed)
        if isinstance(line, str):
            return line
        raise line

    monkeypatch.setattr("trl_ext.cli.chat.read_line", read_line)
    _converse(talk)
    assert next(typed) == "never"
    assert contents(talk.messages) == ["film", "good"]
    assert capsys.readouterr().err.count("Ctrl-C again, Ctrl-D or /exit ends") == 2


# ----------------------------------------------------------------------------------------------------------- commands


def test_weights_change_within_the_conversation(conversation, tokenizer, capsys):
    talk = conversation()
    talk.completer = Completer([guided(tokenizer, {"helpful": 2.0, "brief": 0.0})], SETTINGS)
    for line in ("a", "/beta helpful 3", "b", "/beta brief=1,helpful=0", "c"):
        respond(talk, line)
    assert contents(talk.messages)[1::2] == [
        str({"helpful": helpful, "brief": brief}) for helpful, brief in ((2.0, 0.0), (3.0, 0.0), (0.0, 1.0))
    ]
    capsys.readouterr()
    respond(talk, "/weights")
    assert capsys.readouterr().out == "helpful 0  (rewards of 1 ± 2)\nbrief 1\n"
    for line, message in (
        ("/beta 2", "a weight is a number behind a name: /beta helpful 2, /beta brief 2"),
        ("/beta helpful much", "weights are numbers, got 'helpful much'"),
        ("/beta kind 2", "there is no"),
    ):
        respond(talk, line)
        assert message in capsys.readouterr().err
    talk = conversation()
    respond(talk, "/beta 2")
    assert "nothing with weights guides this model" in capsys.readouterr().err


def test_retry_answers_the_last_message_again(conversation, capsys):
    talk = conversation(["good"], ["bad"], [ValueError("no more")])
    respond(talk, "/retry")
    assert "there is no answer yet" in capsys.readouterr().err
    respond(talk, "film")
    respond(talk, "/retry")
    assert (contents(talk.messages), talk.number) == (["film", "bad"], 2), "a number of its own, so another answer"
    respond(talk, "/retry")
    assert contents(talk.messages) == ["film", "bad"]
    assert "no more" in capsys.readouterr().err


def test_save_reset_help_exit(conversation, capsys):
    talk = conversation(["good"], ["bad"])
    respond(talk, "/save chats.jsonl")
    assert "nothing to save yet" in capsys.readouterr().err
    for line in ("film", "/save chats.jsonl", "/reset", "plot", "/save chats.jsonl", "/save", "/save ./none/there"):
        respond(talk, line)
    rows = [json.loads(line)["messages"] for line in Path("chats.jsonl").read_text().splitlines()]
    assert [contents(row) for row in rows] == [["film", "good"], ["plot", "bad"]]
    assert [message["role"] for message in rows[0]] == ["user", "assistant"]
    error = capsys.readouterr().err
    assert "name a file" in error and "none/there" in error
    respond(talk, "/help")
    printed = capsys.readouterr().out
    assert all(command.usage in printed and command.meaning in printed for command in COMMANDS.values())
    with pytest.raises(Ended):
        respond(talk, "/exit")


def test_unknown_commands_are_not_sent_to_the_model(conversation, capsys):
    talk = conversation(["good"])
    respond(talk, "/bet 3")
    assert talk.messages == []
    assert f"there is no /bet; there are {', '.join(COMMANDS)}" in capsys.readouterr().err
    respond(talk, " /etc is a folder")
    assert contents(talk.messages) == ["/etc is a folder", "good"]


# -------------------------------------------------------------------------------------------------------- with a model


def run(model, *words):
    return main(["--model_name_or_path", model, "--max_completion_length", "5", *words])


def test_a_conversation_continues_until_it_is_reset(tiny_model_dir, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.StringIO("film\nplot\n/reset\n" + "a " * 300 + "\nmusic\n"))
    assert run(tiny_model_dir, "--output_file", "out.jsonl") == 0
    first, second, third = (json.loads(line) for line in Path("out.jsonl").read_text().splitlines())
    assert second["prompt"] == [*first["prompt"], *first["completions"][0], {"role": "user", "content": "plot"}]
    assert third["prompt"] == [{"role": "user", "content": "music"}]
    error = capsys.readouterr().err
    assert "context length leaves 251 for it: shorten either. /reset begins a new conversation." in error


def test_what_is_found_before_a_model_is_loaded(save_model, tiny_model_dir, tmp_path, monkeypatch):
    plain = save_model(tmp_path / "plain")

    def loaded(*args, **kwargs):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("trl_ext.cli.arguments.LoadingArguments.load", loaded)
    for message, model, words in (
        ("'.*plain' has no chat template: use `trl-ext generate`, or pass --chat_template_path", plain, []),
        ("needs the chat template", tiny_model_dir, ["--apply_chat_template", "false"]),
        ("--prompt: a conversation reads from the terminal", tiny_model_dir, ["--prompt", "a"]),
        ("takes one completion", tiny_model_dir, ["--num_generations", "2"]),
    ):
        with pytest.raises(ValueError, match=message):
            run(model, *words)
    with pytest.raises(OSError, match=r"Cannot load the model './none'"):
        run("./none")


def test_settings_of_generate_that_a_conversation_has_no_use_for_are_no_flags(tiny_model_dir):
    """All others of `generate` are, in the help and in the completion of shells; the output file records all."""
    flags, of_generate = (
        {each.dest for each in parser_actions(make())} for make in (make_parser, generate.make_parser)
    )
    assert of_generate - flags == set(ChatArguments.refused_settings)
    assert "--dataset_name" not in make_parser().format_help()
    Path("chat.yaml").write_text(
        f"model_name_or_path: {tiny_model_dir}\nmax_num_prompts: 3\ncolumns: prompt=question\n"
    )
    with pytest.raises(ValueError, match=r"`max_num_prompts`, `columns`: a conversation reads from the terminal"):
        main(["--config", "chat.yaml"])
    (args,) = Parser([ChatArguments], "trl-ext chat").parse_args_and_config(["--model_name_or_path", "m"])
    assert asdict(args) == asdict(generate.GenerateArguments(model_name_or_path="m"))
