# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0
"""Principles: where they come from, where they go, and what is refused."""

import json
from itertools import pairwise

import pytest
from conftest import make_tokenizer
from datasets import Dataset
from tokenizers.processors import TemplateProcessing

from trl_ext.cli.parser import Parser
from trl_ext.data.schema import DataError
from trl_ext.methods.psle.config import PLEConfig, PSLEConfig
from trl_ext.methods.psle.data import (
    check_context_length,
    load_principles,
    prepare_prompts,
    prepare_sft_dataset,
    principle_index,
    principle_texts,
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
    named = {"kind": "Be kind.", "brief": "Be brief."}
    for name, text in (
        ("p.json", json.dumps(named)),
        ("p.yaml", "kind: Be kind.\nbrief: >\n  Be\n  brief.\n"),
        ("p.yml", "- Be kind.\n- Be brief.\n"),
        ("p.jsonl", '"Be kind."\n\n{"principle": "Be brief."}\n'),
        ("p.md", "\ufeffBe kind.\nBe brief.\n"),
    ):
        (tmp_path / name).write_text(text, encoding="utf-8")
        found = load_principles(config(tmp_path, principles_file=str(tmp_path / name)))
        assert [text.strip() for text in found] == [*named.values()], name
    assert load_principles(config(tmp_path, principles=named)) == [*named.values()]
    assert load_principles(config(tmp_path, principles="Be kind.")) == ["Be kind."]
    (tmp_path / "p.yaml").write_text("a: [")
    with pytest.raises(DataError, match=r"p\.yaml' is not YAML"):
        load_principles(config(tmp_path, principles_file=str(tmp_path / "p.yaml")))
    for text, word in (("", "has no principle"), ("[]", "has no principle"), ("{", "not JSON"), ("[1]", "text")):
        listed.write_text(text or "[]")
        with pytest.raises(DataError, match=word):
            load_principles(config(tmp_path, principles_file=str(listed)))
    with pytest.raises(DataError, match="no such file"):
        load_principles(config(tmp_path, principles_file=str(tmp_path / "none.txt")))
    with pytest.raises(DataError, match="principle 1"):
        load_principles(config(tmp_path, principles=["a", " "]))


def test_several_principles_together():
    three = ["Be kind.", "Be\nbrief. ", "Be true."]
    assert principle_texts(three, 1) == three
    assert principle_texts(three[:1], 2) == three[:1]
    assert principle_texts(three, 2) == [
        "1. Be kind.\n2. Be\nbrief.", "1. Be\nbrief.\n2. Be true.", "1. Be kind.\n2. Be true.",
    ]  # fmt: skip
    assert principle_texts(three, 0) == principle_texts(three, 3) == ["1. Be kind.\n2. Be\nbrief.\n3. Be true."]


def test_principles_per_query(tmp_path):
    tokenizer = make_tokenizer()
    rows = [{"prompt": "the film", "principles": own} for own in ([], ["no"], ["no", "yes", "one"])]
    both = config(tmp_path, principles=["good", "best", "great"], principles_per_query=2)
    dataset, _ = prepare_prompts(Dataset.from_list(rows), tokenizer, load_principles(both), both, name="train")
    found = [[tokenizer.decode(ids) for ids in row["guided_ids"]] for row in dataset]
    assert found[0] == ["1. good\n2. best\nthe film", "1. best\n2. great\nthe film", "1. good\n2. great\nthe film"]
    assert found[1] == ["no\nthe film"] and len(found[2]) == 3
    with pytest.raises(DataError, match=r"is 4, but there are 3 principles\. Lower it, or set it to 0"):
        load_principles(config(tmp_path, principles=["a", "b", "c"], principles_per_query=4))


def test_prompts_share_out_the_principles():
    """Each has another one in each iteration, and each principle guides about as many prompts."""
    prompts = [[n, n // 3] for n in range(600)]
    chosen = [[principle_index(ids, iteration, 3) for iteration in range(6)] for ids in prompts]
    assert all(sorted(row[:3]) == [0, 1, 2] and row[3:] == row[:3] for row in chosen)
    assert all(150 < sum(row[0] == k for row in chosen) < 250 for k in range(3))
    assert all(after == (before + 1) % 3 for row in chosen for before, after in pairwise(row))
    assert {principle_index(ids, 5, 1) for ids in prompts} == {0}
    # SHA-256 of "5,54": a resumed run has the principles of the one before, with any version.
    assert [principle_index([5, 54], iteration, 7) for iteration in range(3)] == [4, 5, 6]


@pytest.mark.parametrize(
    ("flags", "recipe", "expected"),
    [
        (["--principles", "Be kind.", "Be brief."], "", ["Be kind.", "Be brief."]),
        ([], "principles: Be kind.", ["Be kind."]),
        ([], "principles: [Be kind., Be brief.]", ["Be kind.", "Be brief."]),
        ([], "principles: {kind: Be kind., brief: Be brief.}", ["Be kind.", "Be brief."]),
    ],
)
def test_principles_of_the_command(tmp_path, flags, recipe, expected):
    (tmp_path / "recipe.yaml").write_text(recipe)
    words = ["--config", str(tmp_path / "recipe.yaml")] if recipe else []
    parser = Parser([PSLEConfig], prog="p")
    [args] = parser.parse_args_and_config([*words, *flags, "--output_dir", str(tmp_path)])
    assert load_principles(args) == expected


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


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"principle": "a", "principles": ["b"]}, "has both 'principle' and 'principles'"),
        ({"principles": ["a", ""]}, "column 'principles': principle 1 must be a text that is not empty"),
        ({"principle": 3}, "column 'principle': must be a text or a list of texts, got 3"),
    ],
)
def test_principles_of_a_row_that_cannot_be_used(tmp_path, columns, words):
    rows = Dataset.from_list([{"prompt": "the film", **columns}])
    with pytest.raises(DataError, match=f"Row 0 of the eval dataset.*{words}"):
        prepare_prompts(rows, make_tokenizer(), ["good"], config(tmp_path), name="eval")


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


def test_the_best_of_several_answers_is_imitated(tmp_path):
    tokenizer = make_tokenizer()
    for row in (
        {"prompt": "the film", "completions": [" was bad", " was good"], "scores": [0, 1]},
        {"prompt": "the film", "chosen": " was good", "rejected": " was bad"},
    ):
        dataset, _ = prepare_sft_dataset(Dataset.from_list([row]), tokenizer, config(tmp_path))
        assert dataset[0]["completion_ids"] == [tokenizer(" was good<|endoftext|>").input_ids]


@pytest.mark.parametrize(
    "text", ["\u8fd9\u90e8\u7535\u5f71\u5f88\u597d\u3002", " the film", "good", "a b<|endoftext|>"]
)
@pytest.mark.parametrize("start", [False, True])
def test_text_is_imitated_from_its_second_token_on(tmp_path, text, start):
    """As by TRL's SFT: text needs no space, and with a start token its first word is imitated too."""
    tokenizer = make_tokenizer()
    whole = tokenizer(text.removesuffix("<|endoftext|>") + "<|endoftext|>").input_ids
    if start:
        bos = "<|im_start|>", tokenizer.convert_tokens_to_ids("<|im_start|>")
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=f"{bos[0]} $A", special_tokens=[bos])
        whole = [bos[1], *whole]
    dataset, dropped = prepare_sft_dataset(Dataset.from_list([{"text": text}]), tokenizer, config(tmp_path))
    assert (dataset[0]["prompt_ids"], dataset[0]["completion_ids"], dropped) == (whole[:1], [whole[1:]], 0)
    short, _ = prepare_sft_dataset(Dataset.from_list([{"text": text}]), tokenizer, config(tmp_path, max_length=2))
    assert short[0]["completion_ids"] == [whole[1:2]]


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([{"text": "a b"}, {"text": ""}], "Row 1 of the SFT dataset, column 'text': must be a text that is not empty"),
        ([{"text": 3}], "Row 0 of the SFT dataset, column 'text'.*got 3"),
        ([{"prompt": "a", "completions": [""], "scores": [1]}], "Row 0 of the SFT .*'completions': .* is empty text"),
        ([{"prompt": CHAT[:1]}], "The SFT dataset has the columns 'prompt'; its rows should have"),
        ([{"messages": [*CHAT, CHAT[0]]}], "Row 0 of the SFT dataset, column 'messages'.*'user', 'assistant', 'user'"),
        ([{"messages": CHAT[1:]}], "column 'messages': must be a conversation"),
    ],
)
def test_answers_that_cannot_be_imitated_are_named_by_their_columns(tmp_path, rows, words):
    with pytest.raises(DataError, match=words):
        prepare_sft_dataset(Dataset.from_list(rows), make_tokenizer(chat=True), config(tmp_path))


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
        ({"principles_per_query": -1}, "principles_per_query"),
        ({"principles": 3}, "principles"),
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
        ({"use_transformers_continuous_batching": True, "cuda_graphs": "always"}, "`cuda_graphs` and `num_beams` out"),
        ({"use_vllm": True, "cast_for_generation": True}, "`cast_for_generation: True` has no effect with `use_vllm`"),
        ({"vllm_mode": "cloud"}, "vllm_mode"),
        ({"beta": -1.0}, "beta"),
        ({"sft_mix": -1.0}, "sft_mix"),
        ({"margin": 0.1, "rank_weight": 0.0}, "`margin: 0.1` has no effect without a ranking loss"),
        ({"reward_temperature": 2.0, "sft_target": "guided"}, "`reward_temperature: 2.0` has no effect where no pair"),
        ({"reward_temperature": 2.0, "sft_weight": 0.0}, "`reward_temperature: 2.0` has no effect where no pair"),
        ({"sft_learning_rate": 1e-5}, "`sft_learning_rate: 1e-05` has no effect without a warm-up"),
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
    with pytest.raises(DataError, match=r"Row 3 of the train .* 'prompt': it has 308 .* context length is 256"):
        list(check_context_length(dataset, 256, 8))
    assert len(list(check_context_length(dataset, 308, 8))) == 1
