# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
Phrases of our own that a reader who knows TRL and PyTorch cannot know, and the field's words for them.

Only what no sentence needs is listed; the rest is a reader's judgement. `python tests/test_words.py` lists all that it
finds.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest


ROOT = Path(__file__).resolve().parent.parent

# What users and contributors read: pages, code (docstrings, messages and comments), tests, headers of recipes, CI.
READ = (
    "*.md",
    "docs/**/*",
    "*.toml",
    ".ci/*",
    ".github/**/*.yml",
    "trl_ext/**/*",
    "benchmarks/**/*",
    "recipes/**/*",
    "tests/**/*",
)
SUFFIXES = (".md", ".py", ".pyi", ".toml", ".yaml", ".yml", "")

# A regular expression of whole words -> what to write. A space matches a line break inside a paragraph or string.
PHRASES = {
    r"(a|the) picture (of|can)|and the picture": "plot",
    r"a token is one replay|as one replay": "each step replays one CUDA graph",
    r"anew": "again",
    r"(are|be|is|was|were) told(?! apart)": "is passed, receives",
    r"(caches?|rooms?) of fixed sizes?|in a room|a room (for|of)|rooms of": "static KV cache",
    r"data sets?": "dataset",
    r"dealt( evenly)? (among|out|to)": "distributed across",
    r"draw(s|ing)? (completions|answers|a completion|an answer)|(completions|answers) (are|is|were) drawn": "generate",
    r"in pieces": "sharded",
    r"in vain": "without a result",
    r"lets? go|letting go": "shut down, release",
    r"loops? of fixed shapes": "CUDA-graph decoding",
    r"(candidates|forwards|nats) an? (completion|prompt|row|token)": "per token, per completion",
    r"no numbers?": "NaN, non-finite, missing",
    r"nothing (is|was) learned from": "has no effect on training",
    r"prompts alone": "prompt-only dataset, prompts without completions",
    r"put together on": "gathered on",
    r"rows in, rounds": "dataset preparation",
    r"say(s|ing)? of": "predicts for, reports about",
    r"(k|of|sibling|the|their|which) siblings?|siblings? (of|tokens?)": "candidate tokens, branches",
    r"stand-ins?|stands? in for": "mock, replaces",
    r"texts under way": "unfinished sequences",
    r"what(ever)? answers (prompts|them)|whatever answers": "policy",
    r"what(ever)? draws": "generation backend, model that generates",
    r"what came of": "observed returns of",
    r"what .{1,20} (is|are|would be) worth|what it is worth": "value, reward",
    r"whole or not at all": "atomically",
    r"whole (for as long|for a while|on each|only while|while)": "gathered",
}

# Between words: spaces and line breaks, and the quotes or sign of a string or comment that continues on the next line.
GAP = r"""(?:[\s"'#]|\b[fr]{1,2}(?=["']))+"""


def pattern(phrase: str) -> re.Pattern[str]:
    """The expression that finds a phrase as whole words, in any case, across lines."""
    return re.compile(rf"\b(?:{phrase.replace(' ', GAP)})\b", re.IGNORECASE)


def findings(path: Path) -> Iterator[str]:
    """`file:line: phrase` and what to write instead, for every phrase of a file."""
    text = path.read_text(encoding="utf-8")
    for phrase, better in PHRASES.items():
        for found in pattern(phrase).finditer(text):
            line = text.count("\n", 0, found.start()) + 1
            words = " ".join(re.sub(r"""["'#]""", " ", found[0]).split())
            yield f"{path.relative_to(ROOT).as_posix()}:{line}: {words!r}: write {better!r}"


def read_files() -> list[Path]:
    """The files that the check reads."""
    found = {path for pattern in READ for path in ROOT.glob(pattern)}
    found.discard(Path(__file__).resolve())  # it holds the phrases
    files = (path for path in found if path.is_file() and path.suffix in SUFFIXES)
    return sorted(
        path for path in files if not any(part.endswith("_cache") for part in path.relative_to(ROOT).parts)
    )  # a linter's


def test_no_phrases_of_our_own():
    wrong = [finding for path in read_files() for finding in findings(path)]
    assert not wrong, "\n".join(["", *wrong])


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("a model in pieces", True),
        ("A model is In\nPieces.", True),
        ('"a model in "\n    f"pieces"', True),
        ("    # a model in\n    # pieces", True),
        ("twin pieces, in piecesmeal, in_pieces", False),
        ("put in: pieces", False),
    ],
    ids=["line", "paragraph", "strings", "comment", "parts of words", "two sentences"],
)
def test_phrases_are_found_across_lines(text, found):
    assert bool(pattern("in pieces").search(text)) == found


if __name__ == "__main__":
    print("\n".join(finding for path in read_files() for finding in findings(path)))
