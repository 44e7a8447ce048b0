# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Judges that need no server, and what is counted of their verdicts."""

import json
import math

import pytest
from conftest import make_model, make_tokenizer

from trl_ext import ColumnJudge, FunctionJudge, JudgeResult, RewardJudge, judge, load_rewards
from trl_ext.judging.pairs import paired, read_completions
from trl_ext.judging.report import report
from trl_ext.judging.verdicts import questions_of


def length(completions, **columns):
    return [float(len(text)) for text in completions]


def longer(prompts, completions_a, completions_b):
    """Without a bias: the longer text."""
    return [
        "A" if len(a) > len(b) else "B" if len(b) > len(a) else "TIE"
        for a, b in zip(completions_a, completions_b, strict=True)
    ]


def test_the_same_verdicts_by_column_reward_and_function(two):
    """By length A wins, ties, loses and ties: (1 + 0.5 + 0 + 0.5) / 4 = 0.5; the last tie is of equal texts."""
    for by in (ColumnJudge("r"), RewardJudge(load_rewards(length)), FunctionJudge(longer)):
        found = judge(*two, by)
        assert isinstance(found, JudgeResult)
        assert (found.wins, found.ties, found.losses, found.identical) == (1, 2, 1, 1)
        assert (found.num_prompts, found.num_pairs, found.num_judged) == (4, 4, 4)
        assert found.win_rate.value == 0.5
        assert found.lengths == {"A": (8 + 2 + 1 + 4) / 4, "B": (5 + 2 + 6 + 4) / 4}
        assert found.faults == {} and found.cost == {} and found.inconsistent == 0
    assert found.policies["A"]["policy"] == "outputs/run"
    assert found.first_shown == 0.5


def test_the_same_file_twice_is_a_half(two):
    for by in (ColumnJudge("reward/r"), FunctionJudge(lambda prompts, completions_a, completions_b: ["A"] * 4)):
        found = judge(two[0], two[0], by)
        assert found.win_rate.value == 0.5 and found.win_rate.interval == (0.5, 0.5)
        assert found.length_controlled.value == 0.5 and found.identical == found.ties == 4


def test_a_judge_that_always_takes_the_first_has_no_effect(two):
    """Opposite verdicts in the two orders are ties, and the report names the bias."""
    by = FunctionJudge(lambda prompts, completions_a, completions_b: ["A"] * len(prompts))
    found = judge(*two, by)
    assert (found.win_rate.value, found.ties, found.inconsistent, found.first_shown) == (0.5, 4, 3, 1.0)
    assert "100.0% of decided verdicts are for the completion shown first" in report(found)
    assert "3 of 4 pairs have opposite verdicts in the two orders" in found.notes[0]


def test_a_win_in_one_order_and_a_tie_in_the_other_is_three_quarters(evaluated):
    a, b = evaluated("a", {"m": [["good"]]}), evaluated("b", {"n": [["bad"]]})

    def half(prompts, completions_a, completions_b):
        return ["A" if text == "good" else "TIE" for text in completions_a]

    by = FunctionJudge(half)
    found = judge(a, b, by)
    assert (found.win_rate.value, found.wins, found.inconsistent) == (0.75, 1, 0)
    assert "no interval: there is one prompt" in found.notes


def test_ties_alone_have_an_interval_of_no_width_and_a_note(evaluated):
    a, b = (evaluated(name, {name: [[text]] * 3}, rewards=[[1.0]] * 3) for name, text in (("a", "x"), ("b", "y")))
    found = judge(a, b, ColumnJudge("r"))
    assert found.win_rate.interval == (0.5, 0.5)
    [note] = found.notes
    assert (
        note.startswith("all verdicts are alike") and "with 3 prompts, up to 63.2% of others" in note
    )  # 1 - 0.05^(1/3)
    assert not judge(a, b, ColumnJudge("r"), bootstrap_samples=0).notes


def test_pairs_without_a_verdict_are_left_out_and_counted(evaluated):
    """One prompt has no reward on one side, one NaN: of four pairs two are judged, both won by A."""
    texts = [["one"], ["two"], ["three"], ["four"]]
    a = evaluated("a", {"m": texts}, rewards=[[1.0], [math.nan], [2.0], [3.0]])
    b = evaluated("b", {"n": [["x"]] * 4}, rewards=[[0.0], [0.0], [math.nan], [0.0]])
    found = judge(a, b, ColumnJudge("reward/r"))
    assert (found.num_judged, found.wins, found.faults) == (2, 2, {"no score": 2})
    assert found.win_rate.value == 1.0
    [note] = [note for note in found.notes if "verdicts are alike" in note]
    assert "with 2 prompts, up to 77.6% of others" in note  # 1 - 0.05^(1/2)
    text = report(found)
    assert (found.num_prompts, found.num_judged_prompts) == (4, 2) and "2 of 2 pairs, on 2 prompts" in text
    assert "2 verdicts: 2 of 4 pairs are left out" in text and max(map(len, text.splitlines())) <= 80


def test_a_fault_in_one_order_leaves_the_pair_out(two):
    calls = iter([["A", None, "A", "A", "B", "TIE"]])
    found = judge(*two, FunctionJudge(lambda prompts, completions_a, completions_b: next(calls)))
    assert found.faults == {"no verdict": 1} and found.num_judged == 3


def test_nothing_judged_has_no_win_rate(two):
    found = judge(*two, FunctionJudge(lambda prompts, **texts: [None] * len(prompts)), allow_missing=True)
    assert found.num_judged == 1  # the equal texts
    first = two[0]
    other = judge(first, two[1], ColumnJudge("logp"))
    assert other.win_rate is None and other.faults == {"no score": 4}
    assert "no pair has a verdict" in report(other)


def test_a_reward_model_judges(two, tmp_path):
    tokenizer = make_tokenizer()
    make_model(len(tokenizer), num_labels=1).save_pretrained(tmp_path / "rm")
    tokenizer.save_pretrained(tmp_path / "rm")
    rewards = load_rewards(str(tmp_path / "rm"))
    found = judge(*two, RewardJudge(rewards), verdicts_file=str(tmp_path / "v.jsonl"))
    rows = [json.loads(line) for line in (tmp_path / "v.jsonl").read_text().splitlines()]
    a, b = (read_completions(path) for path in two)
    for row, pair in zip(rows, paired(a, b).pairs, strict=True):
        texts = [pair.a["completion"], pair.b["completion"]]
        assert [row["score_a"], row["score_b"]] == pytest.approx(rewards[0]([pair.row["prompt"]] * 2, texts), abs=1e-5)
    assert found.num_judged == 4


def test_several_rewards_are_weighted(two):
    def brevity(completions, **columns):
        return [-float(len(text)) for text in completions]

    found = judge(*two, RewardJudge(load_rewards([length, brevity]), [1.0, 3.0]))
    assert (found.wins, found.losses) == (1, 1)
    assert [found.policies, found.wins] == [judge(*two, RewardJudge(load_rewards(brevity))).policies, 1]


def test_a_function_gets_the_columns_that_it_names(evaluated):
    rows = [{"prompt": "p", "answer": "ab"}, {"prompt": [{"role": "user", "content": "q"}], "answer": "c"}]
    a, b = evaluated("a", {"m": [["ab"], ["c"]]}, rows), evaluated("b", {"n": [["x"], ["y"]]}, rows)

    async def right(prompts, completions_a, completions_b, answer):
        texts = [x if isinstance(x, str) else x[0]["content"] for x in completions_a]
        return ["A" if text == wanted else "B" for text, wanted in zip(texts, answer, strict=True)]

    assert judge(a, b, FunctionJudge(right)).wins == 2

    def needs(prompts, completions_a, completions_b, colour):
        raise AssertionError

    with pytest.raises(ValueError, match=r"needs the column 'colour', which the dataset lacks.*answer"):
        judge(a, b, FunctionJudge(needs))


@pytest.mark.parametrize(
    ("output", "message"),
    [(["A"], "a verdict for each of 6 pairs"), (["a"] * 6, "returned 'a' for pair 0"), ("A", "must return a list")],
)
def test_what_a_function_may_not_return(two, output, message):
    with pytest.raises(ValueError, match=message):
        judge(*two, FunctionJudge(lambda prompts, **texts: output))


def test_columns_that_cannot_be_compared(two):
    with pytest.raises(ValueError, match=r"'colour' is not in both files: numbers in both are in .*completion_tokens"):
        judge(*two, ColumnJudge("colour"))
    with pytest.raises(ValueError, match="'prompt' has other values than numbers"):
        judge(*two, ColumnJudge("prompt"))
    assert judge(*two, ColumnJudge("completion_tokens")).wins == 0  # one token each


def test_rewards_of_one_name_by_different_models_are_not_compared(evaluated):
    a = evaluated("a", {"m": [["1"]]}, source="one", sampling={"top_k": 5})
    b = evaluated("b", {"n": [["22"]]}, source="other", sampling={"top_k": 0})
    with pytest.raises(ValueError, match=r"column 'reward/r' of the two files is of different models.*one and other"):
        judge(a, b, ColumnJudge("r"))
    assert judge(a, b, RewardJudge(load_rewards(length))).notes[0] == "the evaluations differ in top_k: 5 and 0"


def test_verdicts_are_kept_and_only_missing_ones_are_asked(two, tmp_path):
    """The first run breaks off in its second batch; the second one asks for the rest."""
    asked = []

    class Counting(FunctionJudge):
        batch_size = 2
        fails = True

        def judge(self, questions):
            if self.fails and len(asked) >= 4:
                raise RuntimeError("broken")
            asked.extend(question.contents["completions"] for question in questions)
            return super().judge(questions)

    path = str(tmp_path / "v.jsonl")
    by = Counting(longer)
    with pytest.raises(RuntimeError, match="broken") as raised:
        judge(*two, by, verdicts_file=path)
    assert any("4 of 8 rows are in" in note for note in raised.value.__notes__)
    by.fails = False
    found = judge(*two, by, verdicts_file=path)
    every = [question.contents["completions"] for question in questions_of(by, _pairs(two))]
    assert asked == every and len(every) == 8
    assert judge(*two, by, verdicts_file=path) == found and len(asked) == 8


def _pairs(two):
    return paired(*(read_completions(path) for path in two)).pairs


def test_faults_are_asked_again_only_if_told_to(two, tmp_path):
    path = str(tmp_path / "v.jsonl")
    fails = [True]

    def sometimes(prompts, completions_a, completions_b):
        return [None if fails[0] and text == "x" else "A" for text in completions_a]

    first = judge(*two, FunctionJudge(sometimes), verdicts_file=path)
    assert first.faults == {"no verdict": 1} and first.num_judged == 3
    fails[0] = False
    assert judge(*two, FunctionJudge(sometimes), verdicts_file=path) == first
    again = judge(*two, FunctionJudge(sometimes), verdicts_file=path, retry_faults=True)
    assert again.faults == {} and again.num_judged == 4
    assert len((tmp_path / "v.jsonl").read_text().splitlines()) == 8


def test_verdicts_of_another_judge_or_of_other_files_are_refused(two, evaluated, tmp_path):
    path = str(tmp_path / "v.jsonl")
    judge(*two, ColumnJudge("r"), verdicts_file=path)
    with pytest.raises(ValueError, match="started with other settings: judge was 'column' and is 'function'"):
        judge(*two, FunctionJudge(longer), verdicts_file=path)
    with pytest.raises(ValueError, match="contents of the rows was"):
        judge(two[0], two[0], ColumnJudge("r"), verdicts_file=path)
    assert judge(*two, FunctionJudge(longer), verdicts_file=path, overwrite=True).num_judged == 4
    with pytest.raises(ValueError, match=r"must end in \.jsonl"):
        judge(*two, ColumnJudge("r"), verdicts_file=str(tmp_path / "v.parquet"))


def test_completions_that_were_scored_again_have_no_kept_verdicts(evaluated, tmp_path):
    """The texts are the same, the rewards are not: A won, and loses now."""
    path = str(tmp_path / "v.jsonl")
    a, b = (evaluated(name, {name: [["text"]]}, rewards=[[reward]]) for name, reward in (("a", 2.0), ("b", 1.0)))
    assert judge(a, b, ColumnJudge("r"), verdicts_file=path).wins == 1
    a = evaluated("a", {"a": [["text"]]}, rewards=[[0.0]])
    with pytest.raises(ValueError, match="contents of the rows was"):
        judge(a, b, ColumnJudge("r"), verdicts_file=path)
    assert judge(a, b, ColumnJudge("r"), verdicts_file=path, overwrite=True).losses == 1
