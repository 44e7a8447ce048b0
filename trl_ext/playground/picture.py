# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""A comparison as a PNG file: its answers side by side, with the colours of their tokens."""

import textwrap
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from trl_ext.atomic_files import replacing

from .answers import Answer, Comparison, quantities, quantity
from .colours import Scale, scale


COLUMNS = 46  # characters in a line of an answer
MOST_LINES = 60  # of an answer; the rest is in the JSON file
_CELL = (7.0, 17.0)  # width and height of a character, in pixels
_MARGIN, _GAP, _FONT, _SCALE = 18.0, 26.0, 8.6, 144

Piece = tuple[str, int, float | None]  # text, column where it begins, value of its token


def wrap(answer: Answer, value: Callable[[Any], float | None], columns: int = COLUMNS) -> list[list[Piece]]:
    """
    The lines of an answer, each a list of pieces of tokens.

    Lines are broken before words, and in words that are longer than a line. A character of East Asian width has two
    columns.

    Args:
        answer ([`~trl_ext.playground.answers.Answer`]): The answer.
        value (`Callable`): From a token to the value that colours it.
        columns (`int`, *optional*): Columns of a line.
    """
    signs = [(sign, index) for index, token in enumerate(answer.tokens) for sign in token.text]
    lines: list[list[tuple[str, int]]] = [[]]
    width = 0
    for position, (sign, index) in enumerate(signs):
        if sign == "\n":
            lines.append([])
            width = 0
            continue
        begins_word = not sign.isspace() and (not position or signs[position - 1][0].isspace())
        if begins_word and lines[-1]:
            word = "".join(s for s, _ in signs[position : position + columns]).split(maxsplit=1)[0]
            if width + cells(word) > columns:
                lines.append([])
                width = 0
        if width + cells(sign) > columns:
            lines.append([])
            width = 0
            if sign.isspace():
                continue
        lines[-1].append((sign, index))
        width += cells(sign)
    return [_pieces(line, answer, value) for line in lines]


def _pieces(line: Sequence[tuple[str, int]], answer: Answer, value: Callable[[Any], float | None]) -> list[Piece]:
    """The characters of a line joined by token."""
    found: list[Piece] = []
    column, last = 0, -1
    for sign, index in line:
        if index == last:
            text, start, known = found[-1]
            found[-1] = (text + sign, start, known)
        else:
            found.append((sign, column, value(answer.tokens[index])))
        column, last = column + cells(sign), index
    return found


def cells(text: str) -> int:
    """Columns that a text takes."""
    return sum(0 if unicodedata.combining(s) else 2 if unicodedata.east_asian_width(s) in "WF" else 1 for s in text)


def save_picture(comparison: Comparison, path: Path, colour_by: str = "") -> None:
    """
    Write a comparison as a PNG file.

    Args:
        comparison ([`~trl_ext.playground.answers.Comparison`]): The comparison.
        path (`Path`): The file.
        colour_by (`str`, *optional*, defaults to `""`): As for [`~trl_ext.playground.markup.answer_html`].
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    answers = comparison.answers
    name = colour_by or next(iter(quantities(answers)), "")
    found = scale(answers, name) if name else None
    columns = [wrap(answer, lambda token: quantity(token, name) if found else None) for answer in answers]
    cut = [lines[:MOST_LINES] for lines in columns]
    prompt = [
        line
        for text in comparison.prompt.splitlines() or [""]
        for line in textwrap.wrap(text, (COLUMNS + 4) * len(answers) - 8) or [""]
    ][:8]
    titles = [textwrap.wrap(answer.title, COLUMNS) for answer in answers]
    above = len(prompt) + 1 + max(map(len, titles))
    cell, height = _CELL
    rows = above + max(max(map(len, cut)), 1) + 4
    across = 2 * _MARGIN + len(answers) * COLUMNS * cell + (len(answers) - 1) * _GAP
    down = 2 * _MARGIN + rows * height
    figure = Figure(figsize=(across / 72, down / 72), dpi=_SCALE, facecolor="white")
    FigureCanvasAgg(figure)
    draw = _Draw(figure, across, down)
    for i, line in enumerate(prompt):
        draw.text(_MARGIN, i, ("> " if not i else "  ") + line, colour="#475569")
    for number, (answer, title, lines) in enumerate(zip(answers, titles, cut, strict=True)):
        left = _MARGIN + number * (COLUMNS * cell + _GAP)
        for i, line in enumerate(title):
            draw.text(left, len(prompt) + 1 + i, line, weight="bold")
        _draw_answer(draw, left, above, lines, found)
        below = above + len(lines)
        if len(columns[number]) > len(lines):
            draw.text(left, below, "… (the JSON file has the rest)", colour="#475569")
            below += 1
        for i, line in enumerate(textwrap.wrap(answer.error, COLUMNS)[:3]):
            draw.text(left, below + i, line, colour="#b91c1c")
    if found is not None:
        draw.text(_MARGIN, rows - 1, f"{found.name}: ")
        start = _MARGIN + (len(found.name) + 2) * cell
        marks = list(dict.fromkeys((found.low, found.middle, found.high)))
        for i, value in enumerate(marks):
            draw.box(start + i * 9 * cell, rows - 1, 8, found.colour(value))
            draw.text(start + (i * 9 + 1) * cell, rows - 1, f"{value:.2f}")
    with replacing(path) as part:
        figure.savefig(part, format="png", dpi=_SCALE, pil_kwargs={"optimize": True})


def _draw_answer(
    draw: "_Draw", left: float, above: int, lines: Sequence[Sequence[Piece]], found: Scale | None
) -> None:
    for row, line in enumerate(lines, above):
        for text, column, value in line:
            x = left + column * _CELL[0]
            if found is not None and value is not None:
                draw.box(x, row, cells(text), found.colour(value))
            draw.text(x, row, text)


class _Draw:
    """Text and boxes in cells of a figure."""

    def __init__(self, figure: Any, across: float, down: float) -> None:
        from matplotlib.font_manager import FontProperties, findfont, get_font

        self.figure, self.across, self.down = figure, across, down
        self.family = "DejaVu Sans Mono"  # comes with matplotlib
        self._has = get_font(findfont(FontProperties(family=self.family))).get_charmap()

    def text(self, x: float, row: int, text: str, colour: str = "#0f172a", weight: str = "normal") -> None:
        """Write text; characters that the font does not have are boxes."""
        column = 0
        for word in _words(text):
            shown = "".join(sign if ord(sign) in self._has else "□" for sign in word)
            if shown.strip():
                self.figure.text(
                    (x + column * _CELL[0]) / self.across, 1 - (_MARGIN + (row + 0.75) * _CELL[1]) / self.down, shown,
                    color=colour, fontsize=_FONT * _CELL[0] / 5.18, family=self.family, weight=weight,
                    parse_math=False, ha="left", va="baseline",
                )  # fmt: skip
            column += cells(word)

    def box(self, x: float, row: int, columns: int, colour: tuple[int, int, int, float]) -> None:
        """Fill cells with a colour."""
        from matplotlib.patches import Rectangle

        red, green, blue, opacity = colour
        self.figure.add_artist(
            Rectangle(
                (x / self.across, 1 - (_MARGIN + (row + 1) * _CELL[1]) / self.down), columns * _CELL[0] / self.across,
                _CELL[1] / self.down, facecolor=(red / 255, green / 255, blue / 255, opacity), linewidth=0,
                transform=self.figure.transFigure,
            )
        )  # fmt: skip


def _words(text: str) -> list[str]:
    """Words and spaces of a text, so that each word begins in its own column."""
    found: list[str] = []
    for sign in text:
        if found and sign.isspace() == found[-1].isspace() and cells(sign) == 1:
            found[-1] += sign
        else:
            found.append(sign)
    return found
