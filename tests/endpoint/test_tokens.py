# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Tokens that a server means by their names: texts, spellings of the vocabulary, bytes, and several threads."""

import threading

import pytest
from conftest import make_llama2_tokenizer, make_tokenizer

import trl_ext.endpoint.tokens as tokens
from trl_ext.endpoint.protocol import Candidate
from trl_ext.endpoint.tokens import ServedText, TokenNames


def spelled(tokenizer, *names):
    """What the vocabulary calls the tokens that are found for a server's names."""
    options = TokenNames(tokenizer).options([Candidate(-1.0, name) for name in names], by_text=True)
    return tokenizer.convert_ids_to_tokens([option.id for option in options])


def test_a_text_is_an_ordinary_token_rather_than_one_of_a_byte():
    tokenizer = make_llama2_tokenizer()
    assert spelled(tokenizer, "A", ".", "1", " film", "film") == ["A", ".", "1", "\u2581film", "film"]
    assert spelled(tokenizer, "\n") == ["<0x0A>"]  # it has no other


@pytest.mark.parametrize("make", [make_llama2_tokenizer, make_tokenizer], ids=["sentencepiece", "bytes"])
def test_servers_may_name_tokens_as_the_vocabulary_spells_them(make):
    tokenizer = make()
    ids = tokenizer(" film.", add_special_tokens=False)["input_ids"]
    names = tokenizer.convert_ids_to_tokens(ids)
    assert spelled(tokenizer, *names) == names
    options = TokenNames(tokenizer).options([Candidate(-1.0, name) for name in names], by_text=True)
    assert "".join(option.text for option in options).strip() == "film."


def test_the_spelling_of_a_byte_adds_its_character():
    tokenizer = make_llama2_tokenizer()
    [option] = TokenNames(tokenizer).options([Candidate(-1.0, "<0x0A>")], by_text=True)
    assert option.text == "\n"


def test_the_end_of_a_turn_ends_an_answer():
    chat = make_tokenizer(chat=True)
    turn, end = chat.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    assert TokenNames(chat).ends == {turn, end}
    assert TokenNames(make_tokenizer()).ends == {end}
    chat.chat_template = "{{ messages[0]['content'] }}\n"  # it ends turns with a line break, which is no special token
    assert TokenNames(chat).ends == {end}


def test_an_answer_behind_token_ids_is_tokenized_as_their_continuation():
    tokenizer = make_llama2_tokenizer()
    whole = tokenizer("the film was good")["input_ids"]
    text = ServedText(tokenizer, [tokenizer.bos_token_id, tokenizer.bos_token_id, *whole[:2]], chat=False, by_id=False)
    text.add_text(" was good")
    assert text.answer_ids == whole[2:]


def test_ids_may_have_holes():
    tokenizer = make_tokenizer()
    tokenizer.get_vocab = lambda: {"<|endoftext|>": 1, "film": 500}
    tokenizer.convert_ids_to_tokens = lambda ids: [None] * len(ids)
    [option] = TokenNames(tokenizer).options([Candidate(-1.0, "", 500)], by_text=False)
    assert option.id == 500


def test_threads_that_look_up_names_wait_for_the_first(monkeypatch):
    """The first thread is held while it makes the table; the others must neither see half of it nor make their own."""
    tokenizer, made, waiting = make_tokenizer(), [], threading.Event()
    make = tokens.token_names

    def slow(tokenizer):
        made.append(1)
        waiting.wait(0.2)
        return make(tokenizer)

    monkeypatch.setattr(tokens, "token_names", slow)
    names, found = TokenNames(tokenizer), []
    candidates = [Candidate(-1.0, " film"), Candidate(-2.0, " good")]
    threads = [
        threading.Thread(target=lambda: found.append(len(names.options(candidates, by_text=True)))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (found, len(made)) == ([2] * 4, 1)


def test_the_space_that_an_answer_by_ids_begins_with_is_kept():
    tokenizer = make_llama2_tokenizer()
    text = ServedText(tokenizer, "the film", chat=False, by_id=True)
    for token in tokenizer("the film was good")["input_ids"][len(text.prompt_ids) :]:
        text.add_token(token, "")
    assert text.prompt + text.answer == "the film was good"
