# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0
"""Principles: where they come from, where they go, and what is refused."""

import json

import pytest
from conftest import make_tokenizer
from datasets import Dataset

from trl_ext.data.schema import DataError
from trl_ext.methods.psle.config import PLEConfig, PSLEConfig
from trl_ext.methods.psle.data import (
    check_context_length,
    load_principles,
    prepare_prompts,
    prepare_sft_dataset,
    with_principle,
)


TEMPLATE = "{principle}\n{prompt}"
CHAT = [{"role": "user", "content": "the film"}, {"role": "assistant", "content": "good"}]
TURNS = [*CHAT, {"role": "user", "content": "a {prompt} was"}]


def config(tmp_path, **changes):
    return PSLEConfig(output_dir=str(tmp_path / "out"), report_to=[], **changes)


def test_names():
    import trl_ext

    assert trl_ext.PLEConfig is trl_ext.PSLEConfig is PLEConfig
    assert trl_ext.PLETrainer is trl_ext.PSLETrainer


# ------------------------------------------------------------------------------------------------------- principles


def test_text():
    assert with_principle("the film", "Be kind.\n", "system", TEMPLATE) == "Be kind.\nthe film"
    assert with_principle("{principle} x", "Be {prompt}.", "user", "{prompt} ({principle})") == (
        "{principle} x (Be {prompt}.)"
    )


def test_chat():
    system = [{"role": "system", "content": "You are here."}]
    rule = {"role": "system", "content": "Be kind."}
    assert with_principle(TURNS, "Be kind.", "system", TEMPLATE) == [rule, *TURNS]
    assert with_principle(system + TURNS, "Be kind.", "system", TEMPLATE) == [
        {"role": "system", "content": "You are here.\n\nBe kind."},
        *TURNS,
    ]
    before = json.dumps(TURNS)
    assert with_principle(TURNS, "Be kind.", "user", TEMPLATE) == [
        *CHAT,
        {"role": "user", "content": "Be kind.\na {prompt} was"},
    ]
    assert json.dumps(TURNS) == before
    with pytest.raises(DataError, match="no user turn"):
        with_principle(CHAT[1:], "Be kind.", "user", TEMPLATE)


def test_sources(tmp_path):
    assert load_principles(config(tmp_path, principles=["a", "b"])) == ["a", "b"]
    lines, listed = tmp_path / "p.txt", tmp_path / "p.json"
    lines.write_text("one\n\ntwo words\n")
    listed.write_text('["one\\nin two lines"]')
    assert load_principles(config(tmp_path, principles_file=str(lines))) == ["one", "two words"]
    assert load_principles(config(tmp_path, principles_file=str(listed))) == ["one\nin two lines"]
    for text, word in (("", "has no principle"), ("[]", "has no principle"), ("{", "not JSON"), ("[1]", "text")):
        listed.write_text(text or "[]")
        with pytest.raises(DataError, match=word):
            load_principles(config(tmp_path, principles_file=str(listed)))
    with pytest.raises(DataError, match="no file"):
        load_principles(config(tmp_path, principles_file=str(tmp_path / "none.txt")))
    with pytest.raises(DataError, match="principle 1"):
        load_principles(config(tmp_path, principles=["a", " "]))


# ------------------------------------------------------------------------------------------------------------- rows


def test_rows_have_both_prompts_and_keep_their_columns(tmp_path):
    tokenizer = make_tokenizer()
    rows = [
        {"prompt": "the film", "principle": None, "topic": "x", "completions": ["y"], "scores": [1.0]},
        {"prompt": "a story", "principle": "no", "topic": "z", "completions": ["y"], "scores": [1.0]},
    ]
    dataset, dropped = prepare_prompts(
        Dataset.from_list(rows), tokenizer, ["good", "best"], config(tmp_path), name="train"
    )
    ids = [tokenizer(text).input_ids for text in ("the film", "good\nthe film", "best\nthe film", "no\na story")]
    assert dropped == 0
    assert dataset["prompt_ids"][0] == ids[0]
    assert dataset["guided_ids"][0] == ids[1:3] and dataset["guided_ids"][1] == ids[3:]
    assert dataset["topic"][:] == ["x", "z"]
    assert "completions" not in dataset.column_names


def test_system_message_and_user_turn_in_tokens(tmp_path):
    tokenizer = make_tokenizer(chat=True)
    rows = Dataset.from_list([{"prompt": [{"role": "user", "content": "the film"}]}])
    for role, text in (
        (
            "system",
            "<|im_start|>system\ngood<|im_end|>\n<|im_start|>user\nthe film<|im_end|>\n<|im_start|>assistant\n",
        ),
        ("user", "<|im_start|>user\ngood\nthe film<|im_end|>\n<|im_start|>assistant\n"),
    ):
        dataset, _ = prepare_prompts(rows, tokenizer, ["good"], config(tmp_path, principle_role=role), name="train")
        assert dataset[0]["guided_ids"] == [tokenizer(text).input_ids]
        assert dataset[0]["prompt_ids"] == tokenizer(text.replace("good\n", "")).input_ids or role == "system"


def test_a_template_that_drops_or_refuses_the_principle_is_found_out(tmp_path):
    tokenizer = make_tokenizer(chat=True)
    rows = Dataset.from_list([{"prompt": [{"role": "user", "content": "the film"}]}])
    kept = tokenizer.chat_template
    tokenizer.chat_template = kept.replace("for m in messages", "for m in messages if m['role'] != 'system'")
    with pytest.raises(DataError, match=r"Row 0.*does not change the tokens.*principle_role"):
        prepare_prompts(rows, tokenizer, ["good"], config(tmp_path), name="train")
    tokenizer.chat_template = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + kept
    )
    with pytest.raises(DataError, match=r"Row 0.*no system role.*principle_role"):
        prepare_prompts(rows, tokenizer, ["good"], config(tmp_path), name="train")


def test_no_principle(tmp_path):
    tokenizer = make_tokenizer()
    rows = Dataset.from_list([{"prompt": "the film", "principle": "good"}, {"prompt": "a story", "principle": ""}])
    with pytest.raises(DataError, match=r"Row 1 of the train dataset has no principle.*principles_file"):
        prepare_prompts(rows, tokenizer, [], config(tmp_path), name="train")
    best = config(tmp_path, sft_target="best", rank_weight=0.0, num_generations=4)
    assert prepare_prompts(rows, tokenizer, [], best, name="train")[0]["guided_ids"][:] == [[], []]


def test_a_principle_that_exceeds_the_context_is_named():
    rows = Dataset.from_list([{"row_index": 7, "prompt_ids": [1] * 5, "guided_ids": [[1] * 9, [1] * 20]}])
    check_context_length(rows, 30, 10)
    check_context_length(rows, 0, 1000)
    with pytest.raises(DataError, match=r"Row 7.*20 tokens \(5 without\).*context length of 29"):
        check_context_length(rows, 29, 10)


@pytest.mark.parametrize("form", ["prompt", "messages", "text"])
def test_answers_to_imitate(tmp_path, form):
    tokenizer = make_tokenizer(chat=True)
    row = {
        "prompt": {"prompt": "the film", "completion": " was good"},
        "messages": {
            "messages": [{"role": "user", "content": "the film"}, {"role": "assistant", "content": "was good"}]
        },
        "text": {"text": "the film was good"},
    }[form]
    dataset, _ = prepare_sft_dataset(Dataset.from_list([row]), tokenizer, config(tmp_path))
    ids = dataset[0]["prompt_ids"] + dataset[0]["completion_ids"][0]
    if form == "messages":
        assert ids == tokenizer.apply_chat_template(row["messages"], tokenize=True, return_dict=True)["input_ids"]
    else:
        assert ids == tokenizer("the film was good<|endoftext|>").input_ids
    with pytest.raises(DataError, match="'answer'"):
        prepare_sft_dataset(Dataset.from_list([{"answer": "x"}]), tokenizer, config(tmp_path))


# ----------------------------------------------------------------------------------------------------------- config


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"threshold": -0.1}, "threshold.*standard deviations.*-0.1"),
        ({"threshold": float("nan")}, "threshold.*nan"),
        ({"threshold": float("inf"), "reward_scaling": "none"}, "in units of the reward.*rank_weight: 0"),
        ({"threshold_decay": 1.1}, "threshold_decay"),
        ({"threshold_decay": float("nan")}, "threshold_decay"),
        ({"threshold_decay": 0.0}, "threshold_decay"),
        ({"reward_temperature": 0.0}, "reward_temperature"),
        ({"num_iterations": 0}, "num_iterations"),
        ({"num_train_epochs": 3}, "num_iterations"),
        ({"principles": ["a"], "principles_file": "b"}, "both set"),
        ({"principle_template": "{prompt}"}, "principle_template"),
        ({"principle_role": "tool"}, "principle_role"),
        ({"sft_target": "worst"}, "sft_target"),
        ({"sft_target": "best"}, "rank_weight: 0"),
        ({"sft_target": "best", "rank_weight": 0.0}, "num_generations"),
        ({"rank_weight": 0.0, "sft_weight": 0.0}, "nothing to learn"),
        ({"reward_scaling": "minmax"}, "reward_scaling"),
        ({"use_vllm": True, "use_transformers_continuous_batching": True}, "exclude"),
        ({"use_transformers_continuous_batching": True, "repetition_penalty": 1.2}, "repetition_penalty"),
        ({"vllm_mode": "cloud"}, "vllm_mode"),
        ({"beta": -1.0}, "beta"),
        ({"sft_mix": -1.0}, "sft_mix"),
    ],
)
def test_settings_that_cannot_be_meant(tmp_path, changes, words):
    with pytest.raises(ValueError, match=words):
        config(tmp_path, **changes)


def test_epochs_follow_from_iterations(tmp_path):
    assert config(tmp_path, num_iterations=3, epochs_per_iteration=2).num_train_epochs == 6


@pytest.mark.parametrize("streamed", [False, True])
def test_a_plain_prompt_without_room_is_an_error_in_streams_too(streamed: bool) -> None:
    rows = Dataset.from_list([{"row_index": 3, "prompt_ids": [0] * 300, "guided_ids": [[0]]}])
    dataset = rows.to_iterable_dataset() if streamed else rows
    with pytest.raises(DataError, match=r"Row 3, column 'prompt': it has 308 .* context length is 256"):
        list(check_context_length(dataset, 256, 8))
    assert len(list(check_context_length(dataset, 308, 8))) == 1
