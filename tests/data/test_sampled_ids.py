# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Token ids that a dataset keeps beside text: when training uses them, and what is said if it does not."""

import pytest
from conftest import make_tokenizer
from dataset_rows import CHAT, PLAIN, USER, prepare, stream
from datasets import Dataset
from thinking import make_byte_tokenizer

from trl_ext.data.sampled_ids import sampled_ids, tokenizer_tag
from trl_ext.data.schema import DataError
from trl_ext.data.tokenization import encode_prompt, is_tokenized, tokenize_row


def sampled(tokenizer, row, ids, **changes):
    """The row with ids as `trl-ext sample` writes them, and the text that they stand for."""
    texts = [tokenizer.decode(x, skip_special_tokens=True) for x in ids]
    chat = isinstance(row["prompt"], list)
    return {
        "prompt": row["prompt"],
        "completions": [[{"role": "assistant", "content": text}] if chat else text for text in texts],
        "scores": [float(i) for i in range(len(ids))],
        "ended": [True] * len(ids),
        "completion_ids": ids,
        "tokenizers": [tokenizer_tag(tokenizer)] * len(ids),
        "prompt_ids": encode_prompt(tokenizer, row["prompt"]),
    } | changes


# Ids that tokenizing the text again does not give: a special token first, no end, and reasoning that "r1" drops.
IDS = [[259, 71, 78], [66, 256], [66, 263, 67, 261]]


@pytest.mark.parametrize("prompt", ["the film ", USER], ids=["text", "chat"])
@pytest.mark.parametrize("make", [Dataset.from_list, stream], ids=["map", "stream"])
def test_training_reads_the_tokens_that_were_sampled(prompt, make, caplog):
    tokenizer = make_byte_tokenizer("r1")
    row = sampled(tokenizer, {"prompt": prompt}, IDS)
    assert tokenize_row(row | {"tokenizers": None}, tokenizer)["completion_ids"] != IDS
    (tokens,), _ = prepare([row], tokenizer, make=make)
    assert tokens["completion_ids"] == IDS
    assert tokens["prompt_ids"] == encode_prompt(tokenizer, prompt)
    assert "tokenizers" not in tokens
    assert not caplog.records  # what a chat template would do to the text does not matter


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"tokenizers": ["some#other", "some#other"]}, "are those of another tokenizer, 'some#other'"),
        ({"completions": ["so", "good"]}, "do not stand for its text"),
        ({"completion_ids": [[5], [10**6]]}, "do not stand for its text"),
    ],
)
def test_ids_that_do_not_fit_are_not_used_and_the_user_is_told(changes, words, caplog):
    tokenizer = make_tokenizer()
    row = sampled(tokenizer, PLAIN, [[59], [62, 1]]) | changes
    (tokens,), _ = prepare([row], tokenizer)
    again = {name: value for name, value in row.items() if name not in ("tokenizers", "completion_ids")}
    assert tokens["completion_ids"] == tokenize_row(again, tokenizer)["completion_ids"]
    assert sum(words in record.getMessage() for record in caplog.records) == 1


def test_completions_without_ids_beside_others():
    tokenizer = make_tokenizer()
    row = sampled(tokenizer, PLAIN, [[59], [62, 1]])
    row |= {"completion_ids": [[59], []], "tokenizers": [row["tokenizers"][0], ""]}
    assert tokenize_row(row, tokenizer)["completion_ids"] == [[59], [62, 1]]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"completion_ids": [[59]]}, "column 'completion_ids': has 1 entries for 2 completions"),
        ({"completion_ids": None}, "column 'completion_ids': has nothing for 2 completions"),
        ({"tokenizers": ["a", "b", "c"]}, "column 'tokenizers': has 3 entries for 2 completions"),
    ],
)
def test_ids_of_other_completions_than_the_row_has(changes, words):
    """As after an edit of a sampled file that removes a completion with its score only."""
    tokenizer = make_tokenizer()
    with pytest.raises(DataError, match=rf"Row 0 of the train dataset, {words}\. Keep them together"):
        prepare([sampled(tokenizer, PLAIN, [[59], [62, 1]]) | changes], tokenizer)


def test_another_prompt_than_was_sampled_from_is_told(caplog):
    tokenizer = make_tokenizer()
    prepare([sampled(tokenizer, PLAIN, [[59]], prompt_ids=[5, 54])], tokenizer)
    assert any(
        "sampled from another prompt" in r.getMessage() and "'the film'" in r.getMessage() for r in caplog.records
    )


def test_tool_calls_have_no_ids():
    assert sampled_ids({"completion_ids": [[1]], "tokenizers": ["x"]}, 0, None, [2], make_tokenizer(), "x", {}) == []


def test_ids_without_completions_are_dropped():
    """A sampled file whose completions a method does not read."""
    (row,), _ = prepare([{"prompt": "the film", "completion_ids": [[1]], "prompt_ids": [1], "tokenizers": ["x"]}])
    assert "completion_ids" not in row
    assert row["prompt_ids"] == encode_prompt(make_tokenizer(), "the film")


def test_sampled_rows_are_not_taken_for_tokenized_ones():
    tokenizer = make_tokenizer()
    row = sampled(tokenizer, PLAIN, [[59]], row_index=0)
    assert not is_tokenized(Dataset.from_list([row]))
    assert is_tokenized(Dataset.from_list(prepare([row], tokenizer)[0]))
    assert not is_tokenized(Dataset.from_list([CHAT]))


def test_the_tag_of_a_tokenizer(tmp_path):
    """An added token changes nothing; a folder is named without those around it."""
    tokenizer, padded = make_tokenizer(), make_tokenizer()
    padded.add_special_tokens({"pad_token": "[PAD]"})
    assert tokenizer_tag(tokenizer) == tokenizer_tag(padded)
    assert tokenizer_tag(tokenizer).rpartition("#")[2] != tokenizer_tag(make_byte_tokenizer()).rpartition("#")[2]
    tokenizer.name_or_path = str(tmp_path / "mine")
    assert tokenizer_tag(tokenizer).startswith("mine#")
    tokenizer.name_or_path = "org/name"
    assert tokenizer_tag(tokenizer).startswith("org/name#")


def test_the_same_vocabulary_under_another_name_fits():
    tokenizer = make_tokenizer()
    row = sampled(tokenizer, PLAIN, [[59]])
    tokenizer.name_or_path = "another/name"
    assert tokenize_row(row, tokenizer)["completion_ids"] == [[59]]
