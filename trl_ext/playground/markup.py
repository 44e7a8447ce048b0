# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
Answers as HTML: tokens with their colours, and the candidates that a reader sees on them.

Whatever comes from a model, a server or a user is escaped, and nothing in it is taken for markup.
"""

from collections.abc import Sequence
from html import escape
from importlib.resources import files

from .answers import Answer, Option, Token, quantities, quantity
from .colours import Scale, scale


_INVISIBLE = {"\n": "⏎", "\t": "⇥", " ": "␣", "\r": "␍"}
REASONS = {
    "stop": "ended by the model",
    "length": "maximum length reached",
    "stopped": "stopped by you",
    "error": "broken off",
}


def style() -> str:
    """The style sheet, as an element."""
    return f"<style>{files(__package__).joinpath('page.css').read_text(encoding='utf-8')}</style>"


def answer_html(
    answer: Answer,
    colour_by: str = "",
    *,
    together: Sequence[Answer] = (),
    details: bool = True,
    styled: bool = False,
) -> str:
    """
    An answer as HTML.

    Args:
        answer ([`~trl_ext.playground.answers.Answer`]):
            The answer.
        colour_by (`str`, *optional*, defaults to `""`):
            Quantity of the colours: the name of a head, `"log-probability"` or `"change by guidance"`. By default the
            first that the answers have, in this order.
        together (`Sequence[Answer]`, *optional*):
            The answers that share its scale of colours. By default it alone.
        details (`bool`, *optional*, defaults to `True`):
            Whether tokens have the candidates, shown when a pointer is on them.
        styled (`bool`, *optional*, defaults to `False`):
            Whether the style sheet is included, for a notebook: `display(HTML(answer_html(answer, styled=True)))`.
    """
    shared = list(together) or [answer]
    name = colour_by or next(iter(quantities(shared)), "")
    found = scale(shared, name) if name else None
    body = "".join(_token(token, found, details) for token in answer.tokens)
    parts = [style()] if styled else []
    parts.append(f'<div class="tx-answer"><div class="tx-title">{escape(answer.title)}</div>')
    if body:
        parts.append(f'<div class="tx-text" dir="auto">{body}</div>')
    if answer.error:
        parts.append(f'<div class="tx-error" role="alert">{escape(answer.error)}</div>')
    parts.append(f'<div class="tx-foot">{escape(_foot(answer))}</div>')
    if answer.note:
        parts.append(f'<div class="tx-note">{escape(answer.note)}</div>')
    parts.append("</div>")
    return "".join(parts)


def legend_html(answers: Sequence[Answer], colour_by: str = "") -> str:
    """What the colours of answers mean; empty if there are none."""
    name = colour_by or next(iter(quantities(answers)), "")
    found = scale(answers, name) if name else None
    if found is None:
        return ""
    ends = [(found.low, "left"), (found.middle, "middle"), (found.high, "right")]
    marks = "".join(
        f'<span class="tx-mark" style="background:{_css(found.colour(value))}">{value:.2f}</span>'
        for i, (value, _) in enumerate(ends)
        if not (i and value == ends[i - 1][0])
    )
    return (
        f'<div class="tx-legend"><b>{escape(found.name)}</b> {marks} '
        "<span>one scale for all answers; hover or tap a token for its candidates</span></div>"
    )


def _foot(answer: Answer) -> str:
    if not answer.finish_reason:
        return "…" if answer.tokens else "waiting…"
    count = len(answer.tokens)
    reason = REASONS.get(answer.finish_reason, answer.finish_reason)
    return f"{count} token{'' if count == 1 else 's'}, {answer.seconds:.1f} s, {reason}"


def _token(token: Token, found: Scale | None, details: bool) -> str:
    value = None if found is None else quantity(token, found.name)
    colour = "" if found is None or value is None else f' style="background:{_css(found.colour(value))}"'
    text, marker = token.text, ""
    if not text:  # it ends the answer, or is a part of the next character
        if not details or "\ufffd" in token.name:
            return ""
        text, marker = token.name, " tx-end"
    if token.chosen is None:
        return f'<span class="tx-token{marker}">{escape(text)}</span>'
    focus = ' tabindex="0"' if details else ""
    inside = _card(token, found, value) if details else ""
    unscored = " tx-unscored" if found is not None and value is None else ""
    return f'<span class="tx-token{marker}{unscored}"{focus}{colour}>{escape(text)}{inside}</span>'


def _card(token: Token, found: Scale | None, value: float | None) -> str:
    """What a reader sees on a token: its candidates in a table."""
    chosen = token.chosen
    assert chosen is not None
    heads = list(dict.fromkeys(head for each in [chosen, *token.options] for head in each.values or {}))
    guided = chosen.before is not None
    columns = ["token", *(["before", "after"] if guided else ["probability"]), *heads]
    rows = list(token.options)
    if not any(option.text == chosen.text and option.after == chosen.after for option in rows):
        rows.append(chosen)
    shown = [_row(option, heads, guided, option.text == chosen.text) for option in rows]
    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    words = f"{found.name} {value:.3f}" if found is not None and value is not None else ""
    if found is not None and value is None and found.name in heads:
        words = "not among the scored candidates"
    elif guided and not heads:
        words = "no guidance at this token"
    caption = f"<caption>{escape(_visible(token.name))}{': ' if words else ''}{escape(words)}</caption>"
    return f'<span class="tx-card"><table>{caption}<tr>{head}</tr>{"".join(shown)}</table></span>'


def _row(option: Option, heads: Sequence[str], guided: bool, chosen: bool) -> str:
    cells = [f"<td>{escape(_visible(option.text))}</td>"]
    if guided:
        cells.append(f"<td>{_percent(option.before)}</td>")
    cells.append(f'<td class="tx-bar" style="--share:{_share(option.after):.3f}">{_percent(option.after)}</td>')
    for head in heads:
        value = (option.values or {}).get(head)
        cells.append(f"<td>{'–' if value is None else f'{value:.2f}'}</td>")
    mark = ' class="tx-chosen"' if chosen else ""
    return f"<tr{mark}>{''.join(cells)}</tr>"


def _percent(probability: float | None) -> str:
    if probability is None or probability != probability:
        return "–"
    return f"{100 * probability:.1f} %" if probability >= 0.0005 else "&lt;0.1 %"


def _share(probability: float) -> float:
    return probability if 0 <= probability <= 1 else 0.0


def _visible(name: str) -> str:
    """A token's name, with signs for what a reader cannot see."""
    signs = [_INVISIBLE.get(sign, sign) if not i or sign != " " else sign for i, sign in enumerate(name[:40])]
    return "".join(signs) + ("…" if len(name) > 40 else "")


def _css(colour: tuple[int, int, int, float]) -> str:
    red, green, blue, opacity = colour
    return f"rgba({red},{green},{blue},{opacity:g})"
