# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Rows as token ids: where prompts end, which completions get an end token, what is truncated or dropped."""

import itertools
import json

import pytest
from conftest import make_llama2_tokenizer, make_tokenizer
from dataset_rows import CHAT, EOS, PLAIN, USER, assistant, completion_texts, completion_tokens, prepare, stream
from datasets import Dataset, IterableDataset
from hypothesis import given, settings
from hypothesis import strategies as st
from thinking import make_byte_tokenizer
from tokenizers import Tokenizer, decoders, models, processors
from transformers import PreTrainedTokenizerFast

from trl_ext.data.chat_template import use_chat_template
from trl_ext.data.schema import DataError, check_row
from trl_ext.data.tokenization import encode_prompt, left_padded, prepare_dataset, tokenize_row
from trl_ext.models.tokenizers import ensure_pad_token, load_tokenizer


# -------------------------------------------------------------------------------------------------------- plain rows


def test_plain_row(tiny_tokenizer):
    row = tokenize_row(PLAIN, tiny_tokenizer)
    assert tiny_tokenizer.convert_ids_to_tokens(row["prompt_ids"]) == ["the", "Ġfilm", "Ġwas"]
    assert completion_tokens(tiny_tokenizer, row) == [["Ġgood", EOS], ["Ġso", "Ġdull", EOS]]
    assert (row["scores"], row["ended"]) == ([1.0, 0.0], [True, True])


def test_completions_that_did_not_end_get_no_end_token(tiny_tokenizer):
    row = tokenize_row(PLAIN | {"ended": [False, True]}, tiny_tokenizer)
    assert completion_tokens(tiny_tokenizer, row) == [["Ġgood"], ["Ġso", "Ġdull", EOS]]
    assert row["ended"] == [False, True]


def test_an_end_token_in_the_text_is_not_doubled(tiny_tokenizer):
    row = tokenize_row(PLAIN | {"completions": [f" good{EOS}", " bad"]}, tiny_tokenizer)
    assert completion_tokens(tiny_tokenizer, row) == [["Ġgood", EOS], ["Ġbad", EOS]]


def test_an_empty_completion_that_ended_is_the_end_token(tiny_tokenizer):
    row = PLAIN | {"completions": ["", " bad"], "ended": [True, True]}
    check_row(row, 0, conversational=False)
    assert completion_tokens(tiny_tokenizer, tokenize_row(row, tiny_tokenizer)) == [[EOS], ["Ġbad", EOS]]


def test_scores_become_floats(tiny_tokenizer):
    assert tokenize_row(PLAIN | {"scores": [2, 1]}, tiny_tokenizer)["scores"] == [2.0, 1.0]


# ------------------------------------------------------------------------------------------------- special tokens


def with_template(template):
    """A tokenizer that adds special tokens to every text, as `template` states."""
    tokenizer = make_tokenizer()
    names = ["<|im_start|>", EOS]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=template, special_tokens=[(name, tokenizer.convert_tokens_to_ids(name)) for name in names]
    )
    tokenizer.bos_token = "<|im_start|>"
    return tokenizer


def test_the_start_token_is_added_once():
    tokenizer = with_template("<|im_start|> $A")
    row = tokenize_row(PLAIN, tokenizer)
    assert tokenizer.convert_ids_to_tokens(row["prompt_ids"]) == ["<|im_start|>", "the", "Ġfilm", "Ġwas"]
    assert completion_tokens(tokenizer, row) == [["Ġgood", EOS], ["Ġso", "Ġdull", EOS]]


@pytest.mark.parametrize("template", [f"$A {EOS}", f"<|im_start|> $A {EOS}"])
def test_tokenizers_that_end_every_text_do_not_end_prompts_or_unended_completions(template):
    tokenizer = with_template(template)
    assert encode_prompt(tokenizer, "the film was")[-1] == tokenizer.convert_tokens_to_ids("Ġwas")
    row = tokenize_row(PLAIN | {"ended": [False, True]}, tokenizer)
    assert row["prompt_ids"] == encode_prompt(tokenizer, "the film was")
    assert completion_tokens(tokenizer, row) == [["Ġgood"], ["Ġso", "Ġdull", EOS]]


def test_a_start_token_that_is_the_end_token_stays():
    """OPT's tokenizer adds `</s>` at the start of every text; a completion also ends with `</s>`."""
    tokenizer = with_template(f"{EOS} $A")
    assert tokenizer.convert_ids_to_tokens(encode_prompt(tokenizer, "the film")) == [EOS, "the", "Ġfilm"]


def test_a_tokenizer_without_an_end_token():
    tokenizer = make_tokenizer()
    tokenizer.eos_token = None
    row = tokenize_row(PLAIN, tokenizer)
    assert completion_tokens(tokenizer, row) == [["Ġgood"], ["Ġso", "Ġdull"]]
    with pytest.raises(DataError, match=r"Row 0 of .*, column 'completions': \[1\] has no tokens"):
        prepare([PLAIN | {"completions": [" good", ""], "ended": [True, True]}], tokenizer)


# ------------------------------------------------------------------------------------------------------ token merges


def make_merging_tokenizer():
    """A byte-pair tokenizer with the tokens "a", "b", "c", "d", "ab" and "abc"."""
    vocabulary = {token: i for i, token in enumerate(["<eos>", "a", "b", "c", "d", "ab", "abc"])}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges=[("a", "b"), ("ab", "c")]))
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<eos>")


@pytest.fixture
def merging_tokenizer():
    return make_merging_tokenizer()


def test_tokens_that_merge_across_the_boundary(merging_tokenizer):
    """ "da" + "b" is tokenized as d, ab. Generation asks with d, a: the completion follows these."""
    row = {"prompt": "da", "completions": ["b", "d"], "scores": [1.0, 0.0]}
    tokens = tokenize_row(row, merging_tokenizer)
    assert merging_tokenizer.convert_ids_to_tokens(tokens["prompt_ids"]) == ["d", "a"]
    assert completion_tokens(merging_tokenizer, tokens) == [["b", "<eos>"], ["d", "<eos>"]]


def test_a_prompt_whose_only_token_merges_with_a_completion(merging_tokenizer):
    """The prompt stays, and the completion is tokenized by itself."""
    row = {"prompt": "a", "completions": ["b", "d"], "scores": [1.0, 0.0], "ended": [True, False]}
    tokens = tokenize_row(row, merging_tokenizer)
    assert merging_tokenizer.convert_ids_to_tokens(tokens["prompt_ids"]) == ["a"]
    assert completion_tokens(merging_tokenizer, tokens) == [["b", "<eos>"], ["d"]]


def test_a_prompt_without_tokens_is_named(merging_tokenizer):
    row = {"completions": ["b"], "scores": [1.0]}
    with pytest.raises(DataError, match=r"Row 1 of .*, column 'prompt': has no tokens"):
        prepare([{"prompt": "dd", **row}, {"prompt": "x", **row}], merging_tokenizer)  # x is not in its vocabulary


@settings(max_examples=60)
@given(
    prompt=st.text("abcd", min_size=1, max_size=6),
    completions=st.lists(st.text("abcd", min_size=1, max_size=6), min_size=1, max_size=4),
    data=st.data(),
)
def test_prompt_and_completion_decode_to_the_complete_text(prompt, completions, data):
    tokenizer = make_merging_tokenizer()
    ended = data.draw(st.lists(st.booleans(), min_size=len(completions), max_size=len(completions)))
    row = {"prompt": prompt, "completions": completions, "scores": [0.0] * len(completions), "ended": ended}
    tokens = tokenize_row(row, tokenizer)
    texts = [prompt + completion + "<eos>" * flag for completion, flag in zip(completions, ended, strict=True)]
    assert tokens["prompt_ids"] == tokenizer(prompt)["input_ids"]
    for text, ids in zip(texts, tokens["completion_ids"], strict=True):
        assert tokenizer.decode(tokens["prompt_ids"] + ids) == text
        together = tokenizer(text)["input_ids"]
        merges = together[: len(tokens["prompt_ids"])] != tokens["prompt_ids"]
        assert merges or tokens["prompt_ids"] + ids == together


# ----------------------------------------------------------------------------------------------------- conversations


def test_chat_row(chat_tokenizer):
    row = tokenize_row(CHAT, chat_tokenizer)
    assert chat_tokenizer.decode(row["prompt_ids"]) == "<|im_start|>user\nquestion<|im_end|>\n<|im_start|>assistant\n"
    assert completion_texts(chat_tokenizer, row) == ["good film<|im_end|>\n", "bad<|im_end|>\n"]
    assert row["prompt_ids"] == encode_prompt(chat_tokenizer, USER)


def test_a_chat_completion_that_did_not_end_gets_no_end_of_turn(chat_tokenizer):
    row = tokenize_row(CHAT | {"ended": [False, True]}, chat_tokenizer)
    assert completion_texts(chat_tokenizer, row) == ["good film", "bad<|im_end|>\n"]


def test_an_empty_chat_completion_has_its_end_of_turn(chat_tokenizer):
    (row,), _ = prepare([CHAT | {"completions": [assistant(""), assistant("bad")]}], chat_tokenizer)
    assert chat_tokenizer.decode(row["completion_ids"][0]) == "<|im_end|>\n"


@pytest.mark.parametrize("columns", [["prompt"], ["prompt", "completions", "scores"]])
def test_a_prompt_that_ends_with_an_answer_is_warned_about(chat_tokenizer, columns, caplog):
    """Its last message is rendered as complete, so that completions would be second answers."""
    row = {name: value for name, value in CHAT.items() if name in columns}
    prepare([row], chat_tokenizer)
    assert not caplog.records
    prepare([row, row | {"prompt": [*USER, *assistant("Sure, ")]}], chat_tokenizer)
    assert "Row 1 of the train dataset: the prompt ends with a message of the assistant, 'Sure, '" in caplog.text


def test_completions_of_several_messages(chat_tokenizer):
    turns = [*assistant("good"), *USER, *assistant("bad")]
    row = tokenize_row(CHAT | {"completions": [turns, assistant("bad")]}, chat_tokenizer)
    assert chat_tokenizer.decode(row["completion_ids"][0]) == (
        "good<|im_end|>\n<|im_start|>user\nquestion<|im_end|>\n<|im_start|>assistant\nbad<|im_end|>\n"
    )


@pytest.mark.parametrize("tools", [[{"name": "music"}], json.dumps([{"name": "music"}])])
def test_tools_and_keyword_arguments_reach_the_template(chat_tokenizer, tools):
    chat_tokenizer.chat_template = (
        "{% for t in tools or [] %}{{ t.name }} {% endfor %}{{ style }}" + chat_tokenizer.chat_template
    )
    row = tokenize_row(CHAT | {"tools": tools, "chat_template_kwargs": {"style": "dull"}}, chat_tokenizer)
    assert chat_tokenizer.decode(row["prompt_ids"]).startswith("music dull<|im_start|>user")


def test_conversations_need_a_chat_template(tiny_tokenizer):
    for tokenize, value in ((tokenize_row, (CHAT, tiny_tokenizer)), (encode_prompt, (tiny_tokenizer, USER))):
        with pytest.raises(DataError, match="conversational, but the tokenizer has no chat template"):
            tokenize(*value)


def test_a_directory_without_a_tokenizer_is_named(tiny_model, tmp_path):
    with pytest.raises(OSError, match=f"There is no model in '{tmp_path}': it holds neither config.json"):
        load_tokenizer(str(tmp_path))
    tiny_model.save_pretrained(tmp_path)
    with pytest.raises(OSError, match=f"There is no tokenizer in '{tmp_path}': save it beside the model"):
        load_tokenizer(str(tmp_path))
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(OSError, match=f"The tokenizer in '{tmp_path}' cannot be loaded: "):
        load_tokenizer(str(tmp_path))


def test_a_chat_template_from_a_file_or_a_tokenizer(tiny_tokenizer, tiny_model_dir, tmp_path):
    (tmp_path / "plain.jinja").write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
    use_chat_template(tiny_tokenizer, str(tmp_path / "plain.jinja"))
    assert tiny_tokenizer.decode(encode_prompt(tiny_tokenizer, USER)) == "question"
    use_chat_template(tiny_tokenizer, tiny_model_dir)
    assert "<|im_start|>" in tiny_tokenizer.chat_template
    make_tokenizer().save_pretrained(tmp_path / "bare")
    with pytest.raises(DataError, match=r"`chat_template_path`: .*bare.* has no chat template"):
        use_chat_template(tiny_tokenizer, str(tmp_path / "bare"))


# ---------------------------------------------------------------------------------------------------------- datasets


@pytest.mark.parametrize("make", [Dataset.from_list, stream], ids=["map", "stream"])
def test_rows_are_numbered_and_other_columns_stay(make):
    rows, dropped = prepare([PLAIN | {"topic": "a"}, PLAIN | {"topic": "b"}], make=make)
    assert [(row["row_index"], row["topic"]) for row in rows] == [(0, "a"), (1, "b")]
    assert dropped == 0


def test_a_prompt_only_dataset(tiny_tokenizer):
    rows, _ = prepare([{"prompt": "the film"}, {"prompt": "so"}])
    assert [row["prompt_ids"] for row in rows] == [encode_prompt(tiny_tokenizer, p) for p in ("the film", "so")]
    assert "completion_ids" not in rows[0]


def test_rows_may_have_different_numbers_of_completions():
    rows, _ = prepare([PLAIN, {"prompt": "so", "completions": [" bad"], "scores": [3]}])
    assert [len(row["completion_ids"]) for row in rows] == [2, 1]


@pytest.mark.parametrize("make", [Dataset.from_list, stream], ids=["map", "stream"])
def test_long_completions_are_truncated_and_rows_with_long_prompts_dropped(tiny_tokenizer, make):
    long = {"prompt": "the film was so very", "completions": [" good"], "scores": [1.0]}  # a prompt of 5 tokens
    full = {"prompt": "the film was so", "completions": [" good", " bad bad bad"], "scores": [1.0, 0.0]}
    rows, dropped = prepare([PLAIN, long, full], max_length=5, make=make)
    assert [row["row_index"] for row in rows] == [0, 2]
    assert [completion_tokens(tiny_tokenizer, row) for row in rows] == [
        [["Ġgood", EOS], ["Ġso", "Ġdull"]],
        [["Ġgood"], ["Ġbad"]],
    ]
    assert dropped == (0 if make is stream else 1)  # a stream is not read ahead


def test_max_length_0_means_no_limit():
    (row,), dropped = prepare([PLAIN | {"prompt": "so " * 300}], max_length=0)
    assert len(row["prompt_ids"]) > 300
    assert dropped == 0


def test_a_max_length_that_drops_every_row_is_an_error():
    with pytest.raises(DataError, match="Every prompt of the train dataset fills max_length=3"):
        prepare([PLAIN, PLAIN], max_length=3)


def test_several_processes_give_the_same_rows(tiny_tokenizer):
    rows = [PLAIN | {"prompt": word} for word in ("the", "so", "film", "was")]
    alone, _ = prepare_dataset(Dataset.from_list(rows), tiny_tokenizer, name="train", max_length=9)
    shared, _ = prepare_dataset(Dataset.from_list(rows), tiny_tokenizer, name="train", max_length=9, num_proc=2)
    assert list(shared) == list(alone)


def test_streams_are_not_read_ahead(tiny_tokenizer):
    seen = []

    def endless():
        for number in itertools.count():
            seen.append(number)
            yield PLAIN

    dataset, _ = prepare_dataset(IterableDataset.from_generator(endless), tiny_tokenizer, name="train", max_length=64)
    assert next(iter(dataset))["row_index"] == 0
    assert len(seen) < 10


# --------------------------------------------------------------------------------------------------------- tokenizers


def test_a_tokenizer_is_padded_on_the_left(tiny_model_dir):
    assert load_tokenizer(tiny_model_dir).padding_side == "left"
    assert load_tokenizer(tiny_model_dir, padding_side="right").padding_side == "right"


def test_prompts_are_padded_on_the_left():
    """Worked by hand."""
    ids, mask = left_padded([[5, 6], [7], [8, 9, 4]], 1)
    assert ids.tolist() == [[1, 5, 6], [1, 1, 7], [8, 9, 4]]
    assert mask.tolist() == [[0, 1, 1], [0, 0, 1], [1, 1, 1]]


def bare_tokenizer(**special):
    return PreTrainedTokenizerFast(tokenizer_object=make_tokenizer().backend_tokenizer, **special)


def test_a_tokenizer_without_a_pad_token_pads_with_the_end_token(tmp_path):
    bare_tokenizer(eos_token="<|endoftext|>").save_pretrained(tmp_path)
    tokenizer = load_tokenizer(str(tmp_path))
    assert tokenizer.pad_token == "<|endoftext|>"
    kept = bare_tokenizer(eos_token="<|endoftext|>", pad_token="<|pad|>")
    assert ensure_pad_token(kept).pad_token == "<|pad|>"


def test_a_tokenizer_with_neither_is_an_error(tmp_path):
    bare_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="neither a pad token nor an end-of-sequence token"):
        load_tokenizer(str(tmp_path))


def test_preference_rows_are_named_by_their_own_columns():
    rows = [
        {"prompt": "the film", "chosen": " good", "rejected": " bad"},
        {"prompt": "we", "chosen": " so", "rejected": None},
    ]
    with pytest.raises(DataError, match="Row 1 of the train dataset, column 'rejected': must be text or messages"):
        prepare(rows)


def test_an_empty_answer_of_a_pair_is_the_end_token(tiny_tokenizer):
    (row,), _ = prepare([{"prompt": "we", "chosen": " so", "rejected": ""}])
    assert completion_tokens(tiny_tokenizer, row) == [["Ġso", EOS], [EOS]]


# ------------------------------------------------------------------------------------------------- prompts stay whole


@pytest.mark.parametrize("row", [{"prompt": "the "}, {"prompt": USER}], ids=["text", "chat"])
@pytest.mark.parametrize("template", ["plain", "r1", "qwen3", "qwen3.5", "glm", "nemotron"])
@pytest.mark.parametrize("ended", [True, False])
def test_a_prompt_is_the_same_with_and_without_completions(row, template, ended):
    """The ids that generation is asked with are those in front of every completion that is trained on."""
    tokenizer = make_byte_tokenizer(template)
    texts = ["film", "<think>\nx\n</think>\n\nfilm", "\n</think>\n\nf"]
    completions = [assistant(text) if row["prompt"] is USER else text for text in texts]
    scored = row | {"completions": completions, "scores": [1.0, 0.0, 2.0], "ended": [ended] * 3}
    tokens = tokenize_row(scored, tokenizer)
    assert tokens["prompt_ids"] == tokenize_row(row, tokenizer)["prompt_ids"]
    for ids in tokens["completion_ids"]:
        whole = tokens["prompt_ids"] + ids
        assert tokenizer.decode(whole) == tokenizer.decode(tokens["prompt_ids"]) + tokenizer.decode(ids)


@pytest.mark.parametrize("prompt", ["the ", "the film", "the:  "])
@pytest.mark.parametrize("text", ["film", " film", "  good", "\nwas"])
def test_prompts_stay_whole_where_a_space_is_put_before_every_text(prompt, text):
    tokenizer = make_llama2_tokenizer()
    tokens = tokenize_row({"prompt": prompt, "completions": [text], "scores": [1.0]}, tokenizer)
    assert tokens["prompt_ids"] == tokenizer(prompt)["input_ids"]
    assert tokenizer.decode(tokens["prompt_ids"] + tokens["completion_ids"][0]) == f"{prompt}{text}</s>"


@pytest.mark.parametrize("make", [Dataset.from_list, stream], ids=["map", "stream"])
def test_a_prompt_that_changes_behind_a_completion_is_told_once(make, caplog):
    row = {"prompt": "the ", "completions": ["film", "fun"], "scores": [1.0, 0.0]}
    for _ in range(2):  # the second time, a dataset's rows may come from a cache
        caplog.clear()
        prepare([PLAIN, row, row], make_byte_tokenizer(), make=make)
        (warning,) = [
            record.getMessage() for record in caplog.records if "the prompt alone ends" in record.getMessage()
        ]
        assert "Row 1 of the train dataset" in warning
        assert "ends in ' '" in warning


def test_reasoning_that_a_template_drops_is_told_once(caplog):
    text = "the plot\n</think>\n\ngood"
    row = {"prompt": USER, "completions": [assistant(text)], "scores": [1.0]}
    prepared, _ = prepare([row, row], make_byte_tokenizer("r1"))
    assert make_byte_tokenizer().decode(prepared[0]["completion_ids"][0], skip_special_tokens=True) == text
    (warning,) = [record.getMessage() for record in caplog.records]
    assert "Row 0 of the train dataset" in warning
    assert repr("the plot\n</think>") in warning


CALL = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "get_weather", "arguments": {}}}]}


@pytest.mark.parametrize("prompts_only", [False, True])
@pytest.mark.parametrize(
    "change",
    [{"tools": json.dumps([{"name": "get_weather"}])}, {"prompt": [*USER, CALL, {"role": "tool", "content": "sun"}]}],
    ids=["tools", "calls"],
)
def test_tools_that_a_template_leaves_out_of_a_prompt_are_told_once(change, prompts_only, chat_tokenizer, caplog):
    row = {**CHAT, **change}
    if prompts_only:
        row = {name: row[name] for name in ("prompt", "tools") if name in row}
    prepare([row, row], chat_tokenizer)
    (warning,) = [record.getMessage() for record in caplog.records]
    assert "Row 0 of the train dataset: the chat template leaves this tool, or call of a tool, out" in warning
    assert "get_weather" in warning
    caplog.clear()
    chat_tokenizer.chat_template = "get_weather " + chat_tokenizer.chat_template
    prepare([row, row], chat_tokenizer)
    assert not caplog.records


@pytest.mark.parametrize("start", ["<|im_start|>", EOS])
def test_a_text_with_a_start_token_gets_no_second_one(start):
    """Prompts that went through a chat template, and a tokenizer that puts a start token in front of every text."""
    tokenizer = with_template(f"{start} $A")
    tokenizer.bos_token = start
    assert tokenizer.convert_ids_to_tokens(encode_prompt(tokenizer, f"{start}the film")) == [start, "the", "Ġfilm"]
    row = tokenize_row(PLAIN | {"prompt": f"{start}the film was"}, tokenizer)
    assert row["prompt_ids"] == encode_prompt(tokenizer, "the film was")
    assert completion_tokens(tokenizer, row) == [["Ġgood", EOS], ["Ġso", "Ġdull", EOS]]


def test_a_template_that_writes_the_start_token_gets_no_second_one():
    tokenizer = with_template("<|im_start|> $A")
    tokenizer.chat_template = "{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}"
    assert tokenizer.convert_ids_to_tokens(encode_prompt(tokenizer, USER)) == ["<|im_start|>", "question"]


@pytest.mark.parametrize("row", [PLAIN, CHAT], ids=["text", "chat"])
def test_a_completion_that_is_cut_has_its_text_cut_too(row):
    tokenizer = make_tokenizer(chat=True)
    prompt = encode_prompt(tokenizer, row["prompt"])
    (cut,), _ = prepare([row], tokenizer, max_length=len(prompt) + 1)
    kept = "good" if row is CHAT else " good"
    assert cut["completions"][0] == (assistant(kept) if row is CHAT else kept)
    assert cut["ended"] == [False, False]
    assert tokenizer.decode(cut["completion_ids"][0]) == kept


def test_the_setting_for_chat_templates_reaches_every_row():
    rows = [{"prompt": USER, "chat_template_kwargs": kwargs} for kwargs in ({"enable_thinking": True}, {"style": "x"})]
    dataset, _ = prepare_dataset(
        Dataset.from_list(rows),
        make_byte_tokenizer("qwen3.5"),
        name="train",
        max_length=0,
        chat_template_kwargs={"enable_thinking": False},
    )
    ends = [make_byte_tokenizer().decode(row["prompt_ids"]).partition("assistant\n")[2] for row in dataset]
    assert ends == ["<think>\n", "<think>\n\n</think>\n\n"]
