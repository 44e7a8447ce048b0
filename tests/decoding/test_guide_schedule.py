# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0
"""Which tokens are guided: the equations against loops, words and sentences against regular expressions, bad input."""

import itertools
import math
import random
from typing import Any, ClassVar

import pytest
import torch
from conftest import make_tokenizer
from oracles import guide_schedule as oracle
from transformers import AddedToken

from trl_ext.data.tokenization import left_padded
from trl_ext.decoding.guide_schedule import (
    GuideSchedule,
    entropy,
    extend_digest,
    margin,
    read_schedule,
    sure,
    text_digest,
    uniform,
)
from trl_ext.decoding.scheduled_rows import ScheduledRows
from trl_ext.decoding.text_units import INSIDE, MARK, NEW_SENTENCE, SPACE, START, TextUnits, advance, text_units


# ---------------------------------------------------------------------------------------------------------- equations


def test_entropy_equals_the_loop() -> None:
    logits_NV = torch.randn(5, 9, generator=torch.Generator().manual_seed(0)) * 3
    logits_NV[1, 2:] = -torch.inf
    assert entropy(logits_NV).tolist() == pytest.approx([oracle.entropy(row) for row in logits_NV.tolist()], abs=1e-5)


def test_worked_entropies() -> None:
    """Four equal tokens: log 4. One possible token: 0. Halves: log 2."""
    none = -math.inf
    rows = torch.tensor([[1.0, 1.0, 1.0, 1.0], [5.0, none, none, none], [2.0, 2.0, none, none]])
    assert entropy(rows).tolist() == pytest.approx([math.log(4), 0.0, math.log(2)], abs=1e-6)


def test_worked_margins() -> None:
    """Impossible candidates do not count; one possible candidate has no margin."""
    added_Nk = torch.tensor([[1.0, -0.5, 9.0], [0.3, 0.3, 0.3], [4.0, 7.0, -8.0]])
    possible_Nk = torch.tensor([[True, True, False], [True, True, True], [True, False, False]])
    assert margin(added_Nk, possible_Nk).tolist() == pytest.approx([1.5, 0.0, 0.0])


def test_a_small_margin_bounds_the_kl() -> None:
    """KL(q | p) is at most margin^2 / 8 where q is p with the added logits, whatever p is."""
    generator = torch.Generator().manual_seed(1)
    logits_NV = torch.randn(500, 6, generator=generator) * 2
    added_NV = torch.randn(500, 6, generator=generator) * torch.rand(500, 1, generator=generator) * 2
    p, q = logits_NV.log_softmax(-1), (logits_NV + added_NV).log_softmax(-1)
    kl = (q.exp() * (q - p)).sum(-1)
    bound = margin(added_NV, torch.ones_like(added_NV, dtype=torch.bool)).square() / 8
    assert bool((kl <= bound + 1e-6).all())
    assert bool((kl > bound / 3).any()), "the bound is not far away"


def test_sure_of_both_decisions() -> None:
    """p = 0.9 and 0.1 are as sure as one another; at a half nothing is."""
    logits = torch.tensor([0.9, 0.1, 0.6, 0.5]).logit()
    assert sure(logits, 0.8).tolist() == [True, True, False, False]
    assert sure(logits, 0.5).tolist() == [True, True, True, False]
    assert sure(logits, 0.0).all()


def test_random_numbers_equal_those_of_integers() -> None:
    generator = random.Random(2)
    texts = [[generator.randrange(128_000) for _ in range(length)] for length in (1, 2, 7, 40)]
    ids, mask = left_padded(texts, 0)
    for seed in (0, 1, 12_345):
        found = uniform(text_digest(ids, mask), seed).tolist()
        assert found == [oracle.uniform(text, seed) for text in texts]


def test_a_digest_grows_by_a_token_and_ignores_padding() -> None:
    ids, mask = torch.tensor([[0, 0, 5, 6], [3, 0, 5, 6]]), torch.tensor([[0, 0, 1, 1], [1, 0, 1, 1]])
    grown = extend_digest(text_digest(ids[:, :3], mask[:, :3]), ids[:, 3])
    assert torch.equal(grown, text_digest(ids, mask))
    assert torch.equal(text_digest(ids, mask), text_digest(*left_padded([[5, 6], [3, 5, 6]], 9)))


def test_random_numbers_are_uniform_and_independent() -> None:
    """Of 20,000 texts that differ in the last token: mean, variance, neighbours and seeds, to four standard errors."""
    count = 20_000
    ids_NS = torch.stack([torch.full((count,), 7), torch.arange(count)], 1)
    digest = text_digest(ids_NS, torch.ones_like(ids_NS))
    one, other = uniform(digest, 0).double(), uniform(digest, 1).double()
    error = 4 / count**0.5
    assert float(one.mean()) == pytest.approx(0.5, abs=error / 12**0.5)
    assert float(one.var()) == pytest.approx(1 / 12, abs=error * 0.075)
    for pair in (torch.stack([one[1:], one[:-1]]), torch.stack([one, other])):
        assert abs(float(torch.corrcoef(pair)[0, 1])) < error
    assert float(one.min()) >= 0
    assert float(one.max()) < 1


# ------------------------------------------------------------------------------------------------ words and sentences


@pytest.mark.parametrize(
    ("text", "state"),
    [
        ("", START), ("a", INSIDE), ("a ", SPACE), ("a.", MARK), ('a."', MARK), ("a. ", NEW_SENTENCE),
        ('a." ', NEW_SENTENCE), ('a. "', INSIDE), ("a\n", NEW_SENTENCE), ("3.1", INSIDE), ("あ。", NEW_SENTENCE),
        ("あ。」", NEW_SENTENCE), (" ", NEW_SENTENCE), ("a?!** ", NEW_SENTENCE), ("a.\u201d\n ", NEW_SENTENCE),
    ],
)  # fmt: skip
def test_what_a_text_ends_in(text: str, state: int) -> None:
    assert advance(START, text) == state
    for cut in range(len(text) + 1):
        assert advance(advance(START, text[:cut]), text[cut:]) == state


def test_beginnings_equal_those_of_regular_expressions() -> None:
    """All texts of up to five characters of an alphabet, before all tokens of up to two."""
    alphabet = 'a \n."。」'
    texts = [""] + ["".join(x) for n in range(1, 6) for x in itertools.product(alphabet, repeat=n)]
    tokens = ["".join(x) for n in (1, 2) for x in itertools.product(alphabet, repeat=n)]
    units = TextUnits(_Named(tokens), len(tokens))
    for text in random.Random(0).sample(texts, 600) + texts[:60]:
        state = advance(START, text)
        for i, token in enumerate(tokens):
            assert bool(units.begins["word"][i, state]) == oracle.begins_word(text, token), (text, token)
            assert bool(units.begins["sentence"][i, state]) == oracle.begins_sentence(text, token), (text, token)
            assert int(units.next_VZ[i, state]) == advance(START, text + token)


class _Named:
    """A tokenizer whose tokens are given texts."""

    all_special_ids = ()
    added_tokens_decoder: ClassVar[dict[int, Any]] = {}

    def __init__(self, texts: list[str]) -> None:
        self.texts = texts

    def __call__(self, text: str, **kwargs: Any) -> dict[str, list[int]]:
        return {"input_ids": []}

    def get_vocab(self) -> dict[str, int]:
        return {text: i for i, text in enumerate(self.texts)}

    def decode(self, ids: list[int], **kwargs: Any) -> str:
        return "".join(self.texts[i] for i in ids)

    def batch_decode(self, rows: list[list[int]], **kwargs: Any) -> list[str]:
        return [self.decode(ids) for ids in rows]


def test_special_tokens_begin_both() -> None:
    """Also one without a name in the tokenizer, as the end of a turn has none in that of Gemma 3."""
    tokenizer = make_tokenizer()
    tokenizer.add_tokens([AddedToken("<end_of_turn>", special=True), AddedToken("<think>", special=False)])
    turn, think = tokenizer.convert_tokens_to_ids(["<end_of_turn>", "<think>"])
    assert turn not in tokenizer.all_special_ids
    units = text_units(tokenizer, len(tokenizer) + 2)
    for unit in ("word", "sentence"):
        assert units.begins[unit][tokenizer.eos_token_id].all()
        assert units.begins[unit][turn].all()
        assert not units.begins[unit][think].all()
        assert units.begins[unit][:, START].all()
    film = tokenizer.convert_tokens_to_ids("\u0120film")
    assert units.begins["word"][film].all()
    assert units.begins["sentence"][film].tolist() == [False, False, True, True, True]
    assert text_units(tokenizer, len(tokenizer) + 2) is units


# ---------------------------------------------------------------------------------------------------- rows of a batch

PROMPTS = [[15, 16, 17], [19], [11, 12, 13, 14, 15, 16, 17], [20, 21]]
SCHEDULES = [
    GuideSchedule(), GuideSchedule(3), GuideSchedule(entropy=3.0), GuideSchedule(random=0.4, seed=3),
    GuideSchedule("word"), GuideSchedule("sentence"), GuideSchedule(2, entropy=2.5, random=0.7),
    GuideSchedule("word", entropy=3.0, random=0.5),
]  # fmt: skip


def decisions(
    schedule: GuideSchedule, order: list[int], length: int = 12, follow: bool = True
) -> dict[int, list[bool]]:
    """Decisions about random continuations of prompts in one batch, by prompt."""
    tokenizer = make_tokenizer()
    ids, mask = left_padded([PROMPTS[i] for i in order], 0)
    rows, width, found = ScheduledRows(schedule, tokenizer=tokenizer), ids.shape[1], {i: [] for i in order}
    if not follow:
        rows.start(ids, mask)
    for t in range(length):
        if follow:
            rows.follow(ids, lambda x: torch.cat([mask, torch.ones_like(x[:, width:])], 1))
        logits = torch.stack([_logits(i, t, len(tokenizer)) for i in order])
        guided = torch.zeros(len(order), dtype=torch.bool)
        if not schedule.skips(rows.position):
            guided = rows.guided(logits)
        rows.count(guided)
        for i, yes in zip(order, guided.tolist(), strict=True):
            found[i].append(yes)
        tokens = torch.stack([_token(i, t, len(tokenizer)) for i in order])
        ids = torch.cat([ids, tokens[:, None]], 1)
        if not follow:
            rows.append(tokens)
    assert rows.counts_2.tolist() == [sum(map(sum, found.values())), length * len(order)]
    return found


def _logits(row: int, t: int, size: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(100 * row + t)
    return torch.randn(size, generator=generator) * (1 + 2 * torch.rand((), generator=generator))


def _token(row: int, t: int, size: int) -> torch.Tensor:
    return torch.randint(5, size, (), generator=torch.Generator().manual_seed(7000 + 100 * row + t))


@pytest.mark.parametrize("follow", [True, False], ids=["followed", "appended"])
@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_decisions_equal_the_loop(schedule: GuideSchedule, follow: bool) -> None:
    tokenizer = make_tokenizer()
    found = decisions(schedule, [0, 1, 2, 3], follow=follow)
    for i, prompt in enumerate(PROMPTS):
        answer = [int(_token(i, t, len(tokenizer))) for t in range(12)]
        expected = [
            oracle.is_guided(schedule, prompt, answer[:t], _logits(i, t, len(tokenizer)).tolist(), tokenizer)
            for t in range(12)
        ]
        assert found[i] == expected
    if not schedule.always:
        assert 0 < sum(map(sum, found.values())) < 48


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_decisions_do_not_depend_on_the_batch(schedule: GuideSchedule) -> None:
    together = decisions(schedule, [0, 1, 2, 3])
    assert decisions(schedule, [3, 1, 0, 2]) == together
    for i in range(4):
        assert decisions(schedule, [i]) == {i: together[i]}


def test_beams_that_change_places_go_on() -> None:
    rows, schedule = ScheduledRows(GuideSchedule(2, random=0.5)), GuideSchedule(2, random=0.5)
    ids = torch.tensor([[4, 5], [4, 5]])
    assert not rows.follow(ids, lambda x: None)
    ids = torch.tensor([[4, 5, 6], [4, 5, 7]])
    assert rows.follow(ids, lambda x: None)
    ids = torch.tensor([[4, 5, 7, 8], [4, 5, 7, 9]])  # both of the second beam
    assert rows.follow(ids, lambda x: None)
    assert rows.position == 2
    assert uniform(rows.digest_N, 0).tolist() == [oracle.uniform(row, 0) for row in ids.tolist()]
    assert not rows.follow(ids, lambda x: None), "the same again is a prompt"
    assert rows.position == 0
    assert rows.schedule == schedule


def test_rows_that_have_ended_are_neither_guided_nor_counted() -> None:
    rows = ScheduledRows(GuideSchedule(entropy=0.1), ends=[1])
    rows.start(torch.tensor([[4], [5]]))
    logits = torch.zeros(2, 9)
    for tokens in ([3, 1], [3, 3], [1, 1]):
        guided = rows.guided(logits)
        rows.count(guided)
        rows.append(torch.tensor(tokens))
    assert guided.tolist() == [True, False]
    assert rows.counts_2.tolist() == [4, 4]
    rows.start(torch.tensor([[4], [5]]))
    assert rows.guided(logits).all()
    rows.count(None)
    assert rows.counts_2.tolist() == [4, 6]


# ----------------------------------------------------------------------------------------------------------- settings


def test_settings_are_read_as_commands_and_files_write_them() -> None:
    assert read_schedule("1", None) == read_schedule(1, {}) == read_schedule("1", "") == GuideSchedule()
    assert read_schedule("4", '{"entropy": 1.5}') == GuideSchedule(4, entropy=1.5)
    assert read_schedule("word", {"random": "0.25", "seed": 3}) == GuideSchedule("word", random=0.25, seed=3)
    assert GuideSchedule().always
    assert not any(schedule.always for schedule in SCHEDULES[1:])
    assert str(GuideSchedule()) == ""
    assert str(GuideSchedule(4, entropy=1.5)) == "every 4, entropy 1.5"
    assert GuideSchedule("word", random=0.5).changes() == {"every": "word", "random": 0.5}


@pytest.mark.parametrize(
    ("every", "when", "message"),
    [
        (0, None, "`guide_every` must be a whole number of at least 1, 'word' or 'sentence', got 0"),
        ("-2", None, "`guide_every` must be a whole number"),
        ("paragraph", None, "`guide_every` .* got 'paragraph'"),
        ("1.5", None, "`guide_every` .* got '1.5'"),
        (1, "entropy", "`guide_when` must be a mapping in JSON"),
        (1, [1], "`guide_when` must be a mapping"),
        (1, {"entropy": -1}, "`guide_when`: `entropy` must be a number of nats, 0 or more, got -1.0"),
        (1, {"entropy": math.inf}, "`guide_when`: `entropy` must be .* got inf"),
        (1, {"margin": math.nan}, "`guide_when`: margin must be a number, got nan"),
        (1, {"random": 1.1}, "`guide_when`: `random` must be a share between 0 and 1, got 1.1"),
        (1, {"confidence": 0.3}, "`guide_when`: `confidence` must be from 0.5 to below 1, .* got 0.3"),
        (1, {"confidence": 1}, "`guide_when`: `confidence` .* got 1.0"),
        (1, {"seed": 2}, "`guide_when`: `seed` has no effect without `random`"),
        (1, {"entropy": "high"}, "`guide_when`: entropy .*'high'"),
        (1, {"entrpy": 1}, "condition 'entrpy', which does not exist: there is .*seed; did you mean 'entropy'\\?$"),
        (1, {"margin": 1}, "`guide_when` has the condition 'margin': not here"),
    ],
)  # fmt: skip
def test_bad_settings_name_the_setting(every: Any, when: Any, message: str) -> None:
    refused = {"margin": "not here"} if "not here" in message else None
    with pytest.raises(ValueError, match=message):
        read_schedule(every, when, refused=refused)


def test_words_need_a_tokenizer() -> None:
    with pytest.raises(ValueError, match="every word needs the language model's tokenizer"):
        ScheduledRows(GuideSchedule("word"))
