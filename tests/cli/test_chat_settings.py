# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""The settings of chat templates and of the end of an answer, in every command that generates."""

import json
from pathlib import Path

import pytest
from conftest import make_model
from datasets import load_dataset
from thinking import END, TEMPLATES, make_byte_tokenizer

import trl_ext.inference.policy as policies
from trl_ext.cli.evaluate import main as evaluate
from trl_ext.cli.generate import main as generate
from trl_ext.cli.sample import main as sample
from trl_ext.data.tokenization import encode_prompt, prepare_dataset


ROWS = [
    {"prompt": [{"role": "user", "content": "film?"}], "chat_template_kwargs": {"enable_thinking": True}},
    {"prompt": [{"role": "user", "content": "plot?"}]},
]
OFF = {"enable_thinking": False}
COMMANDS = {
    "sample": (sample, ["--output_file", "out.jsonl"]),
    "generate": (generate, []),
    "evaluate": (evaluate, []),
}


@pytest.fixture(scope="module")
def thinking_dir(tmp_path_factory):
    """A model whose prompts open a thought, and whose tokenizer ends texts in another way than turns."""
    folder = tmp_path_factory.mktemp("models") / "thinking"
    tokenizer = make_byte_tokenizer("qwen3.5", eos="<|endoftext|>")
    make_model(len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def asked(tmp_path, monkeypatch):
    """The prompts that models were asked with, and the tokens that ended their answers."""
    seen = []

    def spy(model, tokenizer, prompts, settings, **kwargs):
        ends = settings.generation_config(model, tokenizer).eos_token_id
        seen.extend((prompt, ends) for prompt in prompts)
        return original(model, tokenizer, prompts, settings, **kwargs)

    original = policies.generate
    monkeypatch.setattr(policies, "generate", spy)
    monkeypatch.chdir(tmp_path)
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return seen


def run(command, model, *words):
    call, more = COMMANDS[command]
    given = ["--model_name_or_path", model, "--dataset_name", "rows.jsonl", "--max_completion_length", "3"]
    assert call([*given, *more, *words]) == 0


@pytest.mark.parametrize("command", COMMANDS)
def test_arguments_of_the_chat_template(command, thinking_dir, asked):
    """A row's own win over the flag."""
    tokenizer = make_byte_tokenizer("qwen3.5")
    run(command, thinking_dir, "--chat_template_kwargs", json.dumps(OFF))
    expected = [encode_prompt(tokenizer, ROWS[0]["prompt"]), encode_prompt(tokenizer, ROWS[1]["prompt"], **OFF)]
    assert [prompt for prompt, _ in asked] == expected


@pytest.mark.parametrize("command", COMMANDS)
def test_the_end_of_an_answer_and_another_template(command, thinking_dir, asked):
    Path("plain.jinja").write_text(TEMPLATES["plain"])
    run(command, thinking_dir, "--eos_token", END, "--chat_template_path", "plain.jinja")
    tokenizer = make_byte_tokenizer("plain")
    assert [prompt for prompt, _ in asked] == [encode_prompt(tokenizer, row["prompt"]) for row in ROWS]
    assert all(tokenizer.eos_token_id in ends for _, ends in asked)


def test_sampled_rows_are_trained_on_as_they_were_sampled(thinking_dir, asked):
    """The file has the arguments of the template, so that training renders the same prompts."""
    run("sample", thinking_dir, "--chat_template_kwargs", json.dumps(OFF))
    dataset = load_dataset("json", data_files="out.jsonl", split="train")
    rows = list(dataset)
    tokenized, _ = prepare_dataset(
        dataset.add_column("scores", [[0.0] * 4] * 2),
        make_byte_tokenizer("qwen3.5", eos="<|endoftext|>"),
        name="train",
        max_length=0,
    )
    for row, tokens in zip(rows, tokenized, strict=True):
        assert tokens["prompt_ids"] == row["prompt_ids"]
        assert tokens["completion_ids"] == row["completion_ids"]
    assert [prompt for prompt, _ in asked] == [row["prompt_ids"] for row in rows]


def test_ids_stay_when_a_sampled_file_is_sampled_again(thinking_dir, asked):
    """`--dataset_completions` keeps the ids of the first model; completions of other origin have none."""
    run("sample", thinking_dir)
    first = [json.loads(line) for line in Path("out.jsonl").read_text().splitlines()]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in first))
    words = "--dataset_name rows.jsonl --dataset_completions --output_file again.jsonl --max_completion_length 3"
    assert sample([*words.split(), "--num_generations", "1", "--model_name_or_path", thinking_dir]) == 0
    again = [json.loads(line) for line in Path("again.jsonl").read_text().splitlines()]
    for row, old in zip(again, first, strict=True):
        assert row["completion_ids"][1:] == old["completion_ids"]
        assert len(set(row["tokenizers"])) == 1
        assert row["prompt_ids"] == old["prompt_ids"]


@pytest.mark.parametrize("text", ["{", "3"])
@pytest.mark.parametrize("command", COMMANDS)
def test_arguments_that_are_no_mapping(command, text, thinking_dir, asked):
    with pytest.raises(ValueError, match="`chat_template_kwargs` must be a"):
        run(command, thinking_dir, "--chat_template_kwargs", text)
