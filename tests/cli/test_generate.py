# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""`trl-ext generate`: completions on the terminal and in the file, resumed, and bad input."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from trl_ext.cli.generate import main
from trl_ext.data.schema import DataError
from trl_ext.generation.streaming import TextStream
from trl_ext.generation_settings import GenerationSettings
from trl_ext.inference.policy import model_policy


@pytest.fixture(scope="module")
def plain_dir(save_model, tmp_path_factory):
    """A model whose tokenizer has no chat template."""
    return save_model(tmp_path_factory.mktemp("models") / "plain")


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def typed(monkeypatch):
    """What is typed, or piped in."""
    return lambda text: monkeypatch.setattr("sys.stdin", io.StringIO(text))


def run(model, *words):
    return main(["--model_name_or_path", model, "--max_completion_length", "5", *words])


def read(path="out.jsonl"):
    return [json.loads(line) for line in Path(path).read_text().split("\n") if line]


def test_prompt_is_continued(plain_dir, capsys):
    assert run(plain_dir, "--prompt", "the film", "--output_file", "out.jsonl") == 0
    [row] = read()
    assert list(row) == ["prompt", "completions", "ended"]
    assert capsys.readouterr().out == row["completions"][0] + "\n"


def test_text_is_a_message_if_there_is_a_chat_template_and_it_applies(tiny_model_dir):
    for name, words, prompt in (
        ("a", [], [{"role": "user", "content": "film"}]),
        ("b", ["--system_prompt", "so"], [{"role": "system", "content": "so"}, {"role": "user", "content": "film"}]),
        ("c", ["--apply_chat_template", "false"], "film"),
    ):
        assert run(tiny_model_dir, "--prompt", "film", "--output_file", f"{name}.jsonl", *words) == 0
        [row] = read(f"{name}.jsonl")
        assert row["prompt"] == prompt
        assert isinstance(row["completions"][0], str) == isinstance(prompt, str)


def test_the_system_prompt_stands_before_each_conversation_without_one(tiny_model_dir, capsys):
    said = [{"role": "user", "content": "film"}]
    own = [{"role": "system", "content": "very"}, *said]
    Path("in.jsonl").write_text("".join(json.dumps({"prompt": p}) + "\n" for p in (said, own)))
    words = ["--dataset_name", "in.jsonl", "--system_prompt", "so", "--output_file", "out.jsonl"]
    assert run(tiny_model_dir, *words) == 0
    assert [row["prompt"] for row in read()] == [[{"role": "system", "content": "so"}, *said], own]
    assert "1 of 2 prompts keep a system message of their own" in capsys.readouterr().err


def test_a_dataset_is_completed_in_batches_and_keeps_its_columns(plain_dir, capsys):
    Path("in.jsonl").write_text("".join(json.dumps({"prompt": p, "id": i}) + "\n" for i, p in enumerate("abc")))
    words = ["--dataset_name", "in.jsonl", "--num_generations", "2", "--generation_batch_size", "4"]
    assert run(plain_dir, *words, "--output_file", "out.parquet") == 0
    from datasets import load_dataset

    rows = list(load_dataset("parquet", data_files="out.parquet", split="train"))
    assert [(row["prompt"], row["id"], len(row["completions"])) for row in rows] == [
        ("a", 0, 2),
        ("b", 1, 2),
        ("c", 2, 2),
    ]
    assert "> a\n" in capsys.readouterr().out
    assert run(plain_dir, *words, "--output_file", "out.parquet") == 0
    assert "is complete, with 3 rows" in capsys.readouterr().out


def test_what_belongs_to_completions_of_the_dataset_is_not_written_beside_others(plain_dir):
    """Its scores would be taken for those of the new completions."""
    own = {"completions": ["x", "y"], "scores": [1.0, 0.0], "sources": ["m", "n"], "ended": [True, True]}
    Path("in.jsonl").write_text(json.dumps({"prompt": "film", **own, "id": 7}) + "\n")
    assert run(plain_dir, "--dataset_name", "in.jsonl", "--num_generations", "2", "--output_file", "out.jsonl") == 0
    [row] = read()
    assert list(row) == ["prompt", "completions", "ended", "id"] and row["completions"] != own["completions"]


def test_a_run_is_not_resumed_with_batches_of_another_size(plain_dir, monkeypatch):
    """By default their size depends on the device, and the number of batches says which prompts are done."""
    from trl_ext.cli import generate
    from trl_ext.inference.completer import Completer

    Path("in.jsonl").write_text("".join(json.dumps({"prompt": p}) + "\n" for p in "abcdef"))
    words = ["--dataset_name", "in.jsonl", "--output_file", "out.jsonl"]
    batch = Completer.batch

    def interrupted(self, rows, start):
        if start == 2:
            raise KeyboardInterrupt
        return batch(self, rows, start)

    with monkeypatch.context() as patch:
        patch.setattr(Completer, "batch", interrupted)
        patch.setattr(generate, "usual_batch_size", lambda device: 2)
        assert run(plain_dir, *words) == 130
    monkeypatch.setattr(generate, "usual_batch_size", lambda device: 4)
    with pytest.raises(ValueError, match="generation_batch_size was 2 and is 4"):
        run(plain_dir, *words)
    assert run(plain_dir, *words, "--generation_batch_size", "2") == 0
    assert [row["prompt"] for row in read()] == list("abcdef")


def test_the_dataset_is_not_replaced(plain_dir):
    Path("in.jsonl").write_text(json.dumps({"prompt": "film"}) + "\n")
    with pytest.raises(ValueError, match="output_file is the dataset itself"):
        run(plain_dir, "--dataset_name", "in.jsonl", "--output_file", "./in.jsonl", "--overwrite_output")
    assert read("in.jsonl") == [{"prompt": "film"}]


def test_an_interrupted_run_resumes_to_the_same_file(plain_dir, monkeypatch, capsys):
    words = ["--prompt", "the", "film", "was", "--output_file"]
    assert run(plain_dir, *words, "complete.jsonl") == 0
    from trl_ext.inference.completer import Completer

    one = Completer.one

    def interrupted(self, row, number, *rest):
        if number == 2:
            raise KeyboardInterrupt
        return one(self, row, number, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(Completer, "one", interrupted)
        assert run(plain_dir, *words, "out.jsonl") == 130
    assert len(read()) == 2
    assert "out.jsonl has 2 rows" in capsys.readouterr().err
    assert run(plain_dir, *words, "out.jsonl") == 0
    assert "resuming after 2 of 3 prompts" in capsys.readouterr().err
    assert read() == read("complete.jsonl")


def test_typed_prompts(plain_dir, typed, capsys):
    typed("the film\n\na plot\n")
    assert run(plain_dir, "--output_file", "out.jsonl") == 0
    rows = read()
    assert [row["prompt"] for row in rows] == ["the film", "a plot"]
    assert capsys.readouterr().out == "".join(row["completions"][0] + "\n" for row in rows)
    typed("music")
    assert run(plain_dir, "--output_file", "out.jsonl") == 0
    assert [row["prompt"] for row in read()] == ["the film", "a plot", "music"]


def test_no_prompts_at_all(plain_dir, typed):
    typed("\n")
    with pytest.raises(ValueError, match="there are no prompts: pass --prompt or --dataset_name, or write"):
        run(plain_dir)


def test_bad_settings(plain_dir, typed):
    typed("")

    def fails(message, *words, model=plain_dir, error=ValueError):
        with pytest.raises(error, match=message):
            run(model, *words)

    fails("prompt 1 is empty", "--prompt", "a", "")
    fails("not from both", "--prompt", "a", "--dataset_name", "in.jsonl")
    fails("system_prompt needs a chat template", "--prompt", "a", "--system_prompt", "b")
    fails("context length leaves 251 for it", "--prompt", "a " * 300)
    fails("to .jsonl, not 'out.parquet'", "--output_file", "out.parquet")
    fails("temperature 0", "--prompt", "a", "--temperature", "0", "--num_generations", "2")
    fails("'./none'", "--prompt", "a", model="./none", error=OSError)
    fails("in.jsonl", "--dataset_name", "in.jsonl", error=DataError)
    with pytest.raises(ValueError, match="--model_name_or_path or --endpoint"):
        main(["--prompt", "a"])


class TestStreaming:
    def test_streamed_texts_add_up_to_what_generate_returns(self, tiny_model, tiny_tokenizer):
        policy = model_policy(tiny_model, tiny_tokenizer)
        for temperature in (0.0, 1.0):
            settings = GenerationSettings(num_generations=1, max_completion_length=12, temperature=temperature)
            texts: list[str] = []
            torch.manual_seed(3)
            streamed = policy.stream([7, 9], settings, texts.append)
            torch.manual_seed(3)
            assert [[streamed]] == policy.generate([[7, 9]], settings)
            assert "".join(texts) == streamed.text
            assert len(texts) > 1

    def test_half_a_character_and_blanks_are_held_back(self):
        texts = {(): "", (1,): "a ", (1, 2): "a \ufffd", (1, 2, 3): "a é", (1, 2, 3, 4): "a é\n"}

        class Decoder:
            def __call__(self, *_, **__):
                return {"input_ids": []}

            def decode(self, ids, **_):
                return texts[tuple(ids)]

            def batch_decode(self, rows, **_):
                return list(map(self.decode, rows))

        tokenizer: Any = Decoder()
        shown: list[str] = []
        stream = TextStream(tokenizer, shown.append)
        stream.put(torch.tensor([[5, 6]]))  # the prompt
        for token in (1, 2, 3, 4):
            stream.put(torch.tensor([token]))
        assert shown == ["a", " é"]
        stream.finish("a é\n")
        assert "".join(shown) == "a é\n"
