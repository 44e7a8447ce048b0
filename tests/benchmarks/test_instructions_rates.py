# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""How often a model meets each kind of constraint: rates by hand, and the command on a tiny model."""

import json
from pathlib import Path

import pytest
from conftest import WORDS, make_model, make_tokenizer

from benchmarks.quality.instructions_rates import Rate, main, prompts, rates, show
from trl_ext.data.completion import Completion
from trl_ext.instructions.constraints import KINDS


def test_rates_are_those_of_the_completions() -> None:
    """
    By hand. Two prompts with two completions of seven tokens at most: of the first one meets the constraint, of the
    second both do: 3/4, standard error sqrt(2 (1/4)^2) / sqrt(2). Cut off after 5 tokens all do, and none has ended.
    """
    tokenizer = make_tokenizer()
    rows = [{"prompt": "?", "constraints": [{"kind": "no_commas"}]}] * 2
    good, bad = WORDS[:7], [*WORDS[:5], ",", WORDS[5]]

    def completion(words: list[str]) -> Completion:
        ids = [tokenizer.convert_tokens_to_ids(word if word == "," else f"\u0120{word}") for word in words]
        assert tokenizer.unk_token_id not in ids
        return Completion(tokenizer.decode(ids), ids, ended=True)

    groups = [[completion(words) for words in group] for group in ([good, bad], [good, good])]
    long, short = rates(rows, groups, [7, 5], tokenizer)
    assert long == Rate("no_commas", 7, 0.75, pytest.approx(0.25), 1.0)
    assert short == Rate("no_commas", 5, 1.0, 0.0, 0.0)
    assert "| no_commas | 0.75 ± 0.25 | 1.00 | 1.00 ± 0.00 | 0.00 |" in show([long, short], [7, 5])


def test_each_kind_has_prompts_of_its_own() -> None:
    rows = prompts(list(KINDS), 3, seed=0)
    assert [[each["kind"] for each in row["constraints"]] for row in rows] == [
        [kind] for kind in KINDS for _ in range(3)
    ]
    assert rows == prompts(list(KINDS), 3, seed=0) != prompts(list(KINDS), 3, seed=1)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tokenizer = make_tokenizer(chat=True)
    tokenizer.model_max_length = 2048
    make_model(len(tokenizer), max_position_embeddings=2048).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    words = ["--kinds", "lowercase", "no_commas", "--num", "2", "--num_generations", "2", "--lengths", "8", "4"]
    main(["--model", str(tmp_path), *words, "--output_file", str(tmp_path / "rows.jsonl")])
    table = capsys.readouterr().out
    assert "| kind | met, 8 tokens | ended | met, 4 tokens | ended |" in table
    assert "| lowercase | " in table and "| no_commas | " in table
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [len(row["completions"]) for row in rows] == [2] * 4
