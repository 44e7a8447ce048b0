# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0
"""Texts in slots of a cache against uncached forward passes of each text alone."""

import random
from typing import Any

import pytest
import torch
from oracles.token_tree import CANDIDATES, CAPPED, PROMPTS, RECOMPUTED, SHARED, backbone, branches_by_loop, states

from trl_ext.decoding import slot_tree
from trl_ext.decoding.slot_tree import SlotTree, slot_bytes, slot_unsupported_reason


def after(tree: SlotTree, slots: list[int], texts: list[list[int]], candidates: Any = None) -> torch.Tensor:
    """Hidden states after these texts, all but the last token of which are read first."""
    tree.read(slots, [text[:-1] for text in texts])
    given = None if candidates is None else torch.tensor(candidates)
    return tree.step(slots, torch.tensor([text[-1] for text in texts]), given)


def last_states(model: Any, texts: list[list[int]]) -> torch.Tensor:
    return torch.stack([states(model, text)[-1:] for text in texts])


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", SHARED)
def test_hidden_states_are_those_of_separate_forwards(name: str) -> None:
    """Rows of different lengths in slots in any order; then some of them, one token further. By a loop."""
    model = backbone(name, CAPPED.get(name))
    assert slot_unsupported_reason(model) == ""
    tree, slots, rows = SlotTree(model, 6, 24), [5, 1, 0, 3], [list(row) for row in PROMPTS]
    close(after(tree, slots, rows, CANDIDATES), branches_by_loop(model, rows, CANDIDATES))
    rows = [[*row, 50 + i] for i, row in enumerate(rows)]
    close(tree.step([1, 3], torch.tensor([51, 53])), last_states(model, [rows[1], rows[3]]))
    rows[1].append(7)
    found = tree.step([3, 5, 1], torch.tensor([9, 50, 7]), torch.tensor([CANDIDATES[3], *CANDIDATES[:2]]))
    expected = [[*rows[3], 9], rows[0], rows[1]]
    close(found, branches_by_loop(model, expected, [CANDIDATES[3], *CANDIDATES[:2]]))
    assert tree.lengths == [len(PROMPTS[2]), len(PROMPTS[1]) + 2, 0, len(PROMPTS[3]) + 2, 0, len(PROMPTS[0]) + 1]


@pytest.mark.parametrize("chunk", [2, 5])
@pytest.mark.parametrize("name", ["llama", "mistral sliding"])
def test_texts_that_come_and_go(name: str, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hundred steps of random texts that begin, grow, are cut, change slots or begin with one another."""
    monkeypatch.setattr(slot_tree, "CHUNK", chunk)
    monkeypatch.setattr(slot_tree, "POSITIONS", 7)
    model, rng = backbone(name), random.Random(chunk)
    tree, texts = SlotTree(model, 4, 20), {slot: [3] for slot in range(4)}
    for _ in range(100):
        slots = rng.sample(range(4), rng.randint(1, 4))
        for slot in slots:
            start = rng.choice([[], texts[rng.randrange(4)], texts[slot]])
            text = start[: rng.randint(0, len(start))] if rng.random() < 0.5 else start
            texts[slot] = [*text, *(rng.randrange(60) for _ in range(rng.choice([1, 1, 8])))][-16:]
        asked = [texts[slot] for slot in slots]
        candidates = [[rng.randrange(60) for _ in range(3)] for _ in slots]
        close(after(tree, slots, asked, candidates), branches_by_loop(model, asked, candidates))


def test_what_a_slot_has_is_not_read_again() -> None:
    """Equal texts are read once, beginnings that any slot has are copied, and what follows is read."""
    model, tree = backbone(), SlotTree(backbone(), 4, 24)
    start = tree.tokens
    close(after(tree, [0, 1, 2], [PROMPTS[2]] * 3), last_states(model, [PROMPTS[2]] * 3))
    assert tree.tokens - start == 7 + 3, "the prompt once, its last token in each slot"
    longer = [*PROMPTS[2], 31, 32, 33]
    start = tree.tokens
    close(after(tree, [3], [longer]), last_states(model, [longer]))
    assert tree.tokens - start == 2 + 1
    start = tree.tokens
    tree.cut(3, len(longer) - 1)
    close(tree.step([3], torch.tensor([40])), last_states(model, [[*longer[:-1], 40]]))
    assert tree.tokens - start == 1


def test_a_text_may_fill_its_slot() -> None:
    """The longest text of 20 columns with 4 candidates, whose prompt is read beside a shorter one in chunks."""
    model, tree = backbone(), SlotTree(backbone(), 2, 20)
    rows = [[5 + i for i in range(16)], [7, 8]]
    close(after(tree, [0, 1], rows, CANDIDATES[:2]), branches_by_loop(model, rows, CANDIDATES[:2]))


def test_nothing_is_left_of_a_previous_text() -> None:
    """Not even NaN, which no mask could hide."""
    model, tree = backbone(), SlotTree(backbone(), 4, 24)
    after(tree, [0, 1, 2, 3], PROMPTS)
    for store in tree.cache.stores:
        store.fill_(torch.nan)
    tree.lengths = [0] * 4
    close(after(tree, [2, 0, 1, 3], PROMPTS, CANDIDATES), branches_by_loop(model, PROMPTS, CANDIDATES))


@pytest.mark.parametrize("name", RECOMPUTED)
def test_other_models_are_refused(name: str) -> None:
    model = backbone(name)
    assert slot_unsupported_reason(model)
    with pytest.raises(ValueError, match="cannot be in slots"):
        SlotTree(model, 1, 8)


@pytest.mark.parametrize("error", ["candidates see one another", "a text sees too much", "no token of its own"])
def test_a_wrong_mask_is_detected(error: str, monkeypatch: pytest.MonkeyPatch) -> None:
    right = SlotTree._mask

    def wrong(self: Any, lengths_N: Any, columns_Nq: Any, after: int, width: int, kind: str) -> torch.Tensor:
        mask, column = right(self, lengths_N, columns_Nq, after, width, kind), torch.arange(width)
        if error == "candidates see one another":
            return mask.masked_fill(column >= lengths_N[:, None, None, None], 0.0)
        if error == "a text sees too much":
            return torch.zeros_like(mask)
        return mask.masked_fill(column == columns_Nq[:, None, :, None], torch.finfo(mask.dtype).min)

    monkeypatch.setattr(SlotTree, "_mask", wrong)
    assert "computes something else" in slot_unsupported_reason(backbone())


def test_memory_is_known_before_it_is_allocated() -> None:
    """2 layers of keys and values, 2 heads of 16 channels, 4 bytes: 512 bytes a column."""
    model = backbone()
    assert slot_bytes(model, 24) == 512 * 24
    assert SlotTree(model, 3, 24).nbytes == 3 * 512 * 24
