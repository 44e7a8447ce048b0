# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Texts of completions: what they add to those of their prompts."""

import pytest
import torch
from conftest import make_llama2_tokenizer, make_model, make_tokenizer

from trl_ext.data.completion import Completion, decode_after, drops_first_space, encode_after, truncated
from trl_ext.data.tokenization import tokenize_row
from trl_ext.generation.generate import generate
from trl_ext.generation.streaming import TextStream
from trl_ext.generation_settings import GenerationSettings


def split(tokenizer, prompt, text):
    """Token ids of a prompt, and of what follows it in a text."""
    prompt_ids, ids = tokenizer(prompt)["input_ids"], tokenizer(text)["input_ids"]
    assert ids[: len(prompt_ids)] == prompt_ids
    return prompt_ids, ids[len(prompt_ids) :]


def test_which_tokenizers_drop_the_first_space():
    assert drops_first_space(make_llama2_tokenizer())
    assert not drops_first_space(make_tokenizer())


@pytest.mark.parametrize("make", [make_llama2_tokenizer, make_tokenizer], ids=["sentencepiece", "bytes"])
@pytest.mark.parametrize("text", ["the film was good", "the film, bad", "the film  I", "the film\nwas"])
def test_prompt_and_completion_add_up(make, text):
    tokenizer = make()
    prompt_ids, ids = split(tokenizer, "the film", text)
    assert "the film" + decode_after(tokenizer, [prompt_ids], [ids])[0] == text


@pytest.mark.parametrize("make", [make_llama2_tokenizer, make_tokenizer], ids=["sentencepiece", "bytes"])
def test_a_text_that_continues_another_has_its_tokens(make):
    tokenizer = make()
    for text in ("the film was good", "the film, bad", "the film  I"):
        _, ids = split(tokenizer, "the film", text)
        assert encode_after(tokenizer, text.removeprefix("the film")) == ids


def test_a_completion_without_a_text_before_it_is_decoded_by_itself():
    tokenizer = make_llama2_tokenizer()
    ids = tokenizer("was good", add_special_tokens=False)["input_ids"]
    assert decode_after(tokenizer, [[tokenizer.bos_token_id]], [ids]) == ["was good"]


def test_characters_of_several_tokens_go_on_behind_the_prompt():
    """The last tokens of the prompt begin within a character; nothing but bytes comes until the completion."""
    tokenizer = make_llama2_tokenizer()
    for length in range(1, 14):
        text = "語" * length
        prompt_ids, ids = split(tokenizer, text, text + "日本 was good")
        assert len(prompt_ids) >= 3 * length
        assert decode_after(tokenizer, [prompt_ids], [ids]) == ["日本 was good"]


def test_generated_completions_are_trained_as_they_were_sampled():
    """The stub writes given tokens: the row that is made of its text has the same ones again."""
    tokenizer = make_llama2_tokenizer()
    prompt_ids, ids = split(tokenizer, "the film", "the film was good")
    model = make_model(len(tokenizer))
    model.generate = lambda input_ids, **_: torch.cat([input_ids, torch.tensor([ids])], 1)
    settings = GenerationSettings(num_generations=1, max_completion_length=len(ids), cuda_graphs="never")
    [[completion]] = generate(model, tokenizer, [prompt_ids], settings)
    assert completion.text == " was good"
    row = {"prompt": "the film", "completions": [completion.text], "scores": [1.0], "ended": [False]}
    tokens = tokenize_row(row, tokenizer)
    assert tokens["prompt_ids"] + tokens["completion_ids"][0] == prompt_ids + ids


def test_a_stream_shows_the_same_text():
    tokenizer, shown = make_llama2_tokenizer(), []
    prompt_ids, ids = split(tokenizer, "the film", "the film was good")
    stream = TextStream(tokenizer, shown.append)
    stream.put(torch.tensor([prompt_ids]))
    for token in ids:
        stream.put(torch.tensor([token]))
    stream.finish(" was good")
    assert "".join(shown) == " was good"
    assert len(shown) > 1


def test_a_truncated_completion_keeps_its_first_space():
    tokenizer = make_llama2_tokenizer()
    _, ids = split(tokenizer, "the film", "the film was good")
    assert truncated(Completion(" was good", ids, True), 1, tokenizer) == Completion(" was", ids[:1], False)
