# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Settings of answers, the history of comparisons, and the files that they are exported to."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from trl_ext.endpoint.client import Endpoint
from trl_ext.playground.answers import Answer, Comparison, Option, Token
from trl_ext.playground.columns import Column, default_column, first_columns, weights_of
from trl_ext.playground.history import KEPT, History, export, read_comparison
from trl_ext.playground.picture import cells, wrap
from trl_ext.playground.sources import SourceModel


ENDPOINT = Endpoint("http://127.0.0.1:9/v1", "")
PLAIN = SourceModel(ENDPOINT, "tiny", "tiny")
ONE = SourceModel(ENDPOINT, "tiny+value", "tiny+value", weights={"reward": 3.0})
TWO = SourceModel(ENDPOINT, "tiny+both", "tiny+both", weights={"kind": 2.0, "short": -1.0})


def comparison(prompt: str = "The film <b>$x$", answers: int = 2) -> Comparison:
    tokens = [
        Token(text, text, Option(text, 0.5, 0.25, {"reward": value}), [Option(text, 0.5, 0.25, {"reward": value})])
        for text, value in ((" was", 0.5), (" $2$", -1.0), ("\n", 0.0), ("日本", 2.0), ("😀", None))
    ]
    found = [Answer("tiny", {"reward": float(i)}, tokens, "stop", seconds=1.5) for i in range(answers)]
    return Comparison(prompt, {"seed": 1, "columns": []}, found, "2026-01-01T00:00:00+00:00")


def test_beta_is_the_weight_of_the_only_head() -> None:
    assert weights_of(PLAIN, Column("tiny", 4.0)) is None
    assert weights_of(ONE, Column("tiny+value", 4.0, [7.0, 7.0])) == {"reward": 4.0}


def test_beta_multiplies_the_weights_of_several_heads() -> None:
    assert weights_of(TWO, Column("tiny+both", 0.5, [2.0, -1.0, 9.0])) == {"kind": 1.0, "short": -0.5}
    with pytest.raises(ValueError, match="kind, short"):
        weights_of(TWO, Column("tiny+both", 0.5, [2.0]))


def test_the_page_begins_with_no_guidance_the_servers_and_twice_that() -> None:
    columns = first_columns([PLAIN, ONE], 3)
    assert [weights_of(ONE, column) for column in columns] == [{"reward": 0.0}, {"reward": 3.0}, {"reward": 6.0}]
    assert weights_of(TWO, default_column(TWO)) == TWO.weights
    assert [column.model for column in first_columns([PLAIN], 2)] == ["tiny", "tiny"]


def test_the_history_keeps_the_latest() -> None:
    history = History()
    for number in range(KEPT + 2):
        history.add(comparison(f"prompt {number}"))
    assert len(history.labels) == KEPT and history.labels[0].startswith(f"{KEPT + 2}. “prompt {KEPT + 1}”")
    assert history.labelled(history.labels[-1]).prompt == "prompt 2"
    with pytest.raises(ValueError, match="no longer kept"):
        history.labelled("1. “prompt 0” – tiny")


def test_equal_prompts_have_different_labels() -> None:
    history = History()
    history.add(comparison())
    history.add(comparison())
    assert len(set(history.labels)) == 2


def test_json_holds_everything(tmp_path: Path) -> None:
    made = comparison()
    path = export(made, tmp_path, "json")
    assert path.name == "the-film-b-x.json" and read_comparison(path) == made
    saved = json.loads(path.read_text(encoding="utf-8"))
    assert saved["answers"][0]["text"] == " was $2$\n日本😀"
    assert saved["answers"][0]["tokens"][0]["chosen"] == {
        "text": " was",
        "after": 0.5,
        "before": 0.25,
        "values": {"reward": 0.5},
    }


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"format": 1}', '{"format": 2}', '{"format": 1, "answers": [{}]}']
)
def test_what_is_no_comparison(tmp_path: Path, content: str) -> None:
    (tmp_path / "x.json").write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=r"comparison"):
        read_comparison(tmp_path / "x.json")


@pytest.mark.parametrize("answers", [1, 3])
def test_a_png_has_text_and_colours(tmp_path: Path, answers: int) -> None:
    """Blue for the highest value, orange for the lowest; wider with more answers."""
    path = export(comparison(answers=answers), tmp_path, "png")
    with Image.open(path) as image:
        width = image.width
        colours: Any = image.convert("RGB").getcolors(2**24)
    found = {colour for count, colour in colours if count > 100}
    assert any(blue > 200 and red < 150 for red, _, blue in found)  # 0.6 of (37, 99, 235) on white
    assert any(red > 200 and blue < 150 for red, _, blue in found)
    assert width == pytest.approx(2 * (2 * 18 + answers * 46 * 7 + (answers - 1) * 26), abs=2)


def test_a_png_of_answers_that_failed(tmp_path: Path) -> None:
    failed = Comparison("", {}, [Answer("tiny", error="no such model " * 30, finish_reason="error")])
    assert export(failed, tmp_path, "png").name == "comparison.png"


def lines(text: str, columns: int = 10) -> list[str]:
    answer = Answer("m", tokens=[Token(part, part) for part in text.split("|")])
    return ["".join(piece for piece, _, _ in line) for line in wrap(answer, lambda token: None, columns)]


def test_lines_are_broken_before_words() -> None:
    assert lines("the| film| was| good") == ["the film ", "was good"]
    assert lines("a|\n|\n|b") == ["a", "", "b"]
    assert lines("unbreakable|word") == ["unbreakabl", "eword"]
    assert lines("日本|日本日本") == ["日本日本日", "本"]  # two columns each
    assert lines("") == [""]
    assert all(cells(line) <= 10 for line in lines("so| many| words|, and| some longer ones|日本 😀|" * 9))


def test_pieces_know_their_column_and_value() -> None:
    answer = Answer("m", tokens=[Token("日", "日"), Token(" a", " a")])
    assert wrap(answer, lambda token: 1.0 if token.text == "日" else None, 10) == [[("日", 0, 1.0), (" a", 2, None)]]
