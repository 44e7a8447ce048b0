# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Reward functions in the forms that TRL accepts, and errors that name the function."""

import asyncio
import functools
import json
import logging
import math
import sys
import threading

import numpy as np
import pytest
import torch
from conftest import HANGS, make_model, make_tokenizer
from tiny_trainers import make_trainer

from trl_ext.data.completion import Completion
from trl_ext.progress import Progress, shown
from trl_ext.rewards.classifiers import ClassifierReward
from trl_ext.rewards.functions import Reward, RewardError, check_reward_prompts, load_rewards
from trl_ext.rewards.kept_scores import KeptScores
from trl_ext.rewards.scoring import score_completions
from trl_ext.rewards.settings import RewardSettings


PLAIN = {"prompts": ["the film", "a"], "completions": [" is good", " bad plot and so"]}
MESSAGES = {
    "prompts": [[{"role": "user", "content": "the film"}]] * 2,
    "completions": [[{"role": "assistant", "content": text}] for text in ("is good", "<think>\nx\n</think>\nbad")],
}


def length(completions, **_):
    return [len(text) for text in completions]


def score_values(rewards, **columns):
    """The scores alone."""
    return [scored.score for scored in scores(rewards, **columns)]


def reward(output, name="constant"):
    """A reward function that returns `output` for every input."""
    return Reward(name, lambda **_: output)


def completions_of(texts, ids=None):
    return [Completion(text, ids[i] if ids else [], True) for i, text in enumerate(texts)]


def scores(rewards, weights=None, **columns):
    """`score_completions` of two prompts with one completion each."""
    rows = [{"prompt": prompt} for prompt in PLAIN["prompts"]]
    rows = [row | {name: values[i] for name, values in columns.items()} for i, row in enumerate(rows)]
    groups = [[completion] for completion in completions_of(PLAIN["completions"])]
    return [scored for [scored] in score_completions(rows, groups, rewards, weights)]


@pytest.fixture
def classifier():
    return make_model(len(make_tokenizer()), seed=1, num_labels=1)


# ------------------------------------------------------------------------------------------------------------ scoring


def test_score_is_the_weighted_sum():
    rewards = [reward([1.0, 2.0]), reward([10, -10], "other")]
    found = scores(rewards, [2.0, -0.5])
    assert [scored.score for scored in found] == [2 * 1 - 0.5 * 10, 2 * 2 + 0.5 * 10]
    assert [scored.rewards for scored in found] == [
        {"constant": 1.0, "other": 10.0},
        {"constant": 2.0, "other": -10.0},
    ]
    assert [scored.text for scored in found] == PLAIN["completions"]
    assert score_values(rewards) == [11.0, -8.0]


def test_groups_may_have_different_sizes():
    """The rewards are 0, 1, 2 in the order of the completions."""
    rows = [{"prompt": "a", "label": "x"}, {"prompt": "b", "label": "y"}, {"prompt": "c", "label": "z"}]
    groups = [completions_of(["one", "two"]), [], completions_of(["three"])]
    seen = {}

    def count(**kwargs):
        seen.update(kwargs)
        return list(range(len(kwargs["completions"])))

    found = score_completions(rows, groups, [Reward("count", count)])
    assert [[scored.score for scored in group] for group in found] == [[0.0, 1.0], [], [2.0]]
    assert [[scored.completion for scored in group] for group in found] == groups
    assert seen["prompts"] == ["a", "a", "c"] and seen["label"] == ["x", "x", "z"]


def test_none_and_nan_are_left_out():
    first, second = scores([reward([None, math.nan]), reward([None, 3.0], "other")], [5.0, 2.0])
    assert math.isnan(first.score) and second.score == 6.0
    assert all(math.isnan(value) for value in [*first.rewards.values(), second.rewards["constant"]])
    assert (first.returned_nan, second.returned_nan) == ((), ("constant",))  # None is a valid result


def test_functions_receive_what_trl_passes_them():
    seen = {}

    def look(**kwargs):
        seen.update(kwargs)
        return [0.0, 0.0]

    rows = [{"prompt": prompt, "label": i, "scores": [1.0]} for i, prompt in enumerate(PLAIN["prompts"])]
    groups = [[completion] for completion in completions_of(PLAIN["completions"], [[1], [2, 3]])]
    score_completions(rows, groups, [Reward("look", look)], step=7)
    grpo = {name: seen.pop(name) for name in ("trainer_state", "log_metric", "log_extra")}
    assert seen == PLAIN | {"completion_ids": [[1], [2, 3]], "label": [0, 1], "step": 7}
    assert grpo["trainer_state"].global_step == 0


def test_a_function_need_not_take_what_only_some_functions_use():
    def plain(prompts, completions, completion_ids, label):
        return label

    def asks(prompts, completions, completion_ids, label, log_metric):
        log_metric("labels", len(label))
        return label

    metrics = {}
    rows = [{"prompt": "a", "label": 3.0}]
    [[scored]] = score_completions(rows, [completions_of(["b"])], load_rewards([plain, asks]), metrics=metrics)
    assert scored.score == 6.0 and metrics == {"labels": [1.0]}


# ----------------------------------------------------------------------------------------------- batches and protocol


def test_calls_have_whole_groups_of_at_most_the_batch_size():
    """Groups of 2, 3, 1, 5 and 1 completions in calls of at most 4: 2, then 3 + 1, then the 5 alone, then 1."""
    sizes, seen = [], []

    def count(completions, **_):
        sizes.append(len(completions))
        seen.extend(completions)
        return [float(text) for text in completions]

    groups, number = [], 0
    for size in (2, 3, 1, 5, 1):
        groups.append(completions_of([str(number + i) for i in range(size)]))
        number += size
    rows = [{"prompt": "a"} for _ in groups]
    [found] = load_rewards(count, settings=RewardSettings(reward_batch_size=4))
    scored = score_completions(rows, groups, [found])
    assert sizes == [2, 4, 5, 1]
    assert [x.score for group in scored for x in group] == [float(i) for i in range(12)] == [float(x) for x in seen]
    sizes.clear()
    score_completions(rows, groups, load_rewards(count, settings=RewardSettings(reward_batch_size=0)))
    assert sizes == [12]


def test_what_functions_log_is_kept_by_completion_and_by_name():
    def logs(completions, log_metric, log_extra, **_):
        log_metric("mean_length", sum(map(len, completions)) / len(completions))
        if "bb" in completions:
            log_extra("length", list(map(len, completions)))
        return [0.0] * len(completions)

    metrics = {}
    rows, groups = [{"prompt": "p"}] * 2, [completions_of(["a", "bb"]), completions_of(["ccc", "d"])]
    [found] = load_rewards(logs, settings=RewardSettings(reward_batch_size=2))
    scored = score_completions(rows, groups, [found], metrics=metrics)
    assert metrics == {"mean_length": [1.5, 2.0]}
    assert [[x.extra["length"] for x in group] for group in scored] == [[1, 2], [None, None]]


@pytest.mark.parametrize(
    ("log", "message"),
    [
        (lambda log_extra, **_: log_extra("x", [1, 2, 3]), "'log'.*log_extra.'x', ....* 3 values for 2 completions"),
        (lambda log_extra, **_: log_extra("prompt", [1, 2]), "'log'.*has this column already"),
        (
            lambda log_metric, **_: log_metric("m", "high"),
            "'log' called log_metric.*: a metric is a number",
        ),
    ],
)
def test_wrong_logging_names_the_function(log, message):
    def call(**kwargs):
        log(**kwargs)
        return [0.0, 0.0]

    with pytest.raises(RewardError, match=message):
        scores([Reward("log", call)])


def test_async_functions_share_one_loop_and_run_side_by_side():
    """Clients and locks of a function belong to the loop of its first call; the two functions wait for one another."""
    loops, events = [], []

    def rendezvous(mine, other):
        async def func(completions, **_):
            loops.append(asyncio.get_running_loop())
            if not events:
                events.extend([asyncio.Event(), asyncio.Event()])
            events[mine].set()
            await asyncio.wait_for(events[other].wait(), HANGS)
            return [float(mine)] * len(completions)

        return func

    rewards = [Reward("first", rendezvous(0, 1)), Reward("second", rendezvous(1, 0))]
    assert score_values(rewards) == [1.0, 1.0]
    assert score_values(rewards) == [1.0, 1.0]
    assert len(loops) == 4 and len(set(map(id, loops))) == 1


def test_a_scoring_is_a_phase_of_its_completions(monkeypatch):
    """Of an async function too, which runs in another thread, where `disable_tqdm` counts as well."""
    phases = []
    monkeypatch.setattr(Progress, "start", lambda self: phases.append(self))

    async def waited(completions, **_):
        return [0.0] * len(completions)

    rows = [{"prompt": prompt} for prompt in PLAIN["prompts"]]
    groups = [[completion] for completion in completions_of(PLAIN["completions"])]
    with shown(False):
        score_completions(rows, groups, [Reward("length", length, batch_size=1), Reward("waited", waited)])
    assert {phase.label: (phase.done, phase.total, phase.unit) for phase in phases} == {
        "scoring by length": (2, 2, "completions"),
        "scoring by waited": (2, 2, "completions"),
    }
    assert not any(phase._shown for phase in phases)


def test_what_was_scored_is_kept_if_a_later_call_fails(tmp_path):
    """The second of three calls fails once: the next scoring calls the function for the second and third only."""
    calls, broken = [], [True]

    def flaky(completions, log_metric, **_):
        calls.append(completions[0])
        if completions == ["b"] and broken.pop():
            raise OSError("the judge is busy")
        log_metric("calls", 1)
        return [math.nan if completions == ["a"] else 2.0]

    rows, groups = [{"prompt": "p"}] * 3, [completions_of([text]) for text in "abc"]
    rewards = load_rewards(flaky, settings=RewardSettings(reward_batch_size=1))
    file = tmp_path / "unfinished_scores_0.json"
    with pytest.raises(RewardError, match="the judge is busy") as caught:
        score_completions(rows, groups, rewards, kept=KeptScores(file))
    assert "The 1 rewards that were computed before are in" in caught.value.__notes__[0] and file.is_file()
    metrics = {}
    broken.append(False)
    scored = score_completions(rows, groups, rewards, kept=KeptScores(file), metrics=metrics)
    assert calls == ["a", "b", "b", "c"] and not file.exists()
    assert [group[0].returned_nan for group in scored] == [("flaky",), (), ()] and scored[2][0].score == 2.0
    assert metrics == {"calls": [1.0, 1.0, 1.0]}  # with those that the first call logged


def test_what_an_async_function_scores_beside_one_that_fails_is_kept(tmp_path):
    """Its batches that end after the other function failed are in the file too."""
    calls, failed = [], threading.Event()

    async def judge(completions, **_):
        failed.wait(10)
        calls.append(completions)
        return [1.0]

    def failing(**_):
        failed.set()
        raise OSError

    rows, groups = [{"prompt": "p"}] * 3, [completions_of([text]) for text in "abc"]
    kept = KeptScores(tmp_path / "scores.json")
    rewards = [Reward("judge", judge, batch_size=1), Reward("failing", failing, batch_size=1)]
    with pytest.raises(RewardError):
        score_completions(rows, groups, rewards, kept=kept)
    assert len(json.loads(kept.path.read_text())) == len(calls) == 3


def test_equal_batches_are_scored_one_by_one(tmp_path, caplog):
    """As without a file: nothing was kept, so nothing is reused."""
    values = iter([1.0, 2.0])
    rewards = [Reward("judge", lambda **_: [next(values)], batch_size=1)]
    groups = [completions_of(["a"])] * 2
    found = score_completions([{"prompt": "p"}] * 2, groups, rewards, kept=KeptScores(tmp_path / "scores.json"))
    assert [group[0].score for group in found] == [1.0, 2.0] and not caplog.records


def test_scores_of_one_model_are_not_those_of_another(tiny_tokenizer, tmp_path):
    """Both have no name, as models have that are made in a script."""
    kept, rows = KeptScores(tmp_path / "scores.json"), [{"prompt": "the film"}]
    groups, found = [completions_of([" is good"])], {}
    for seed in (1, 2, 1):
        model = make_model(len(tiny_tokenizer), seed=seed, num_labels=1)
        rewards = load_rewards(model, tiny_tokenizer)
        if not found:
            with pytest.raises(RewardError):
                score_completions(rows, groups, [*rewards, Reward("failing", lambda **_: [])], kept=kept)
        found[seed] = score_completions(rows, groups, rewards, kept=kept)[0][0].score
        assert found[seed] == single_logit(model, tiny_tokenizer, "the film is good")
    assert found[1] != found[2]


def test_other_completions_are_scored_anew(tmp_path):
    def failing(**_):
        raise OSError

    row, kept = {"prompt": "p"}, KeptScores(tmp_path / "scores.json")
    rewards = [Reward("length", length), Reward("failing", failing)]
    with pytest.raises(RewardError):
        score_completions([row], [completions_of(["a"])], rewards, kept=kept)
    [[scored]] = score_completions([row], [completions_of(["aa"])], rewards[:1], kept=kept)
    assert scored.score == 2.0
    assert kept.path.is_file()  # an evaluation does not use up what a step of training left
    score_completions([row], [completions_of(["a"])], rewards[:1], kept=kept)
    assert not kept.path.is_file()


def test_a_function_that_was_corrected_is_called_again(tmp_path, monkeypatch):
    """The file of the function is part of what identifies its scores."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("sys.dont_write_bytecode", True)
    code = "def judge(completions, **_):\n    if completions == ['b']:\n        raise OSError\n    return [1.0]\n"
    kept, found = KeptScores(tmp_path / "scores.json"), []
    rows, groups = [{"prompt": "p"}] * 2, [completions_of(["a"]), completions_of(["b"])]
    for number, text in enumerate((code, "def judge(completions, **_):\n    return [2.0]\n")):
        (tmp_path / f"judges_{number}.py").write_text(text)
        rewards = load_rewards(f"judges_{number}.judge", settings=RewardSettings(reward_batch_size=1))
        try:
            found = score_completions(rows, groups, rewards, kept=kept)
        except RewardError:
            assert kept.path.is_file()
    assert [group[0].score for group in found] == [2.0, 2.0]


def test_completions_without_token_ids():
    assert score_values([Reward("ids", lambda completion_ids, **_: [completion_ids is None] * 2)]) == [1, 1]


def test_an_empty_completion_does_not_hide_the_ids_of_the_others():
    """Of two completions, one has no text and so no token ids: the function receives `[]` for it."""
    groups = [[completion] for completion in completions_of(PLAIN["completions"], [[], [2, 3]])]
    rows = [{"prompt": prompt} for prompt in PLAIN["prompts"]]
    [[first], [second]] = score_completions(
        rows, groups, [Reward("ids", lambda completion_ids, **_: list(map(len, completion_ids)))]
    )
    assert [first.score, second.score] == [0.0, 2.0]


@pytest.mark.parametrize("output", [torch.tensor([1, 2]), np.array([1.0, 2.0]), (1, 2.0), [np.float32(1), True + 1]])
def test_numbers_of_any_kind(output):
    values = score_values([reward(output)])
    assert values == [1.0, 2.0]
    assert all(type(value) is float for value in values)


def test_nothing_to_score():
    def never(**_):
        raise AssertionError("a reward function was called without completions")

    assert score_completions([], [], [Reward("never", never)]) == []
    assert score_completions([{"prompt": "a"}], [[]], [Reward("never", never)]) == [[]]


def test_no_rewards():
    assert all(math.isnan(scored.score) and scored.rewards == {} for scored in scores([]))


def test_async_functions_also_in_a_running_loop():
    async def later(completions, **_):
        await asyncio.sleep(0)
        return [1.0, 2.0]

    async def notebook():
        return score_values(load_rewards(later))

    assert score_values(load_rewards(later)) == asyncio.run(notebook()) == [1.0, 2.0]


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (None, "'constant' returned None, but must return a list"),
        (3.0, "'constant' returned 3.0, but must return a list"),
        ("12", "'constant' returned '12', but must return a list"),
        ([1.0], "'constant' returned 1 rewards for 2 completions"),
        ([1.0, "2"], "'constant' returned '2' for completion 1"),
        ([1.0, [2]], r"'constant' returned \[2\] for completion 1"),
        ([math.inf, 1.0], "'constant' returned inf for completion 0"),
    ],
)
def test_wrong_output_names_the_function(output, message):
    with pytest.raises(RewardError, match=message):
        scores([reward(output)])


@pytest.mark.parametrize(
    ("func", "completion", "hint"),
    [
        (
            lambda completions, **_: [len(text.split()) for text in completions],
            [{"role": "assistant"}],
            "messages here",
        ),
        (lambda completions, **_: [len(each[-1]["content"]) for each in completions], "good", "texts here"),
    ],
)
def test_a_function_for_the_other_form_of_completions_learns_which_they_are(func, completion, hint):
    with pytest.raises(
        RewardError, match=f"raised (Attribute|Type)Error: .* Completions are .*{hint}, as the prompts"
    ):
        Reward("x", func)(["a"], [completion])
    with pytest.raises(RewardError) as caught:
        Reward("x", lambda **_: 1 / 0)(["a"], [completion])
    assert "here" not in str(caught.value)


def test_a_function_that_raises_is_named_and_chained():
    def broken(**_):
        raise KeyError("gold")

    with pytest.raises(RewardError, match=r"'broken' raised KeyError: 'gold'.*2 completions.*\['label'\]") as caught:
        scores(load_rewards(broken), label=[1, 2])
    assert isinstance(caught.value.__cause__, KeyError)


def test_ctrl_c_is_not_caught():
    def interrupted(**_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        scores(load_rewards(interrupted))


@pytest.mark.parametrize(
    ("names", "weights", "message"),
    [
        (["a"], [1.0, 2.0], r"`reward_weights` has 2 entries for 1 reward functions \(a\)"),
        (["a"], [float("inf")], r"`reward_weights` must be finite, got \[inf\]"),
        (["a", "a"], None, "different names"),
    ],
)
def test_weights_and_names_are_checked(names, weights, message):
    with pytest.raises(ValueError, match=message):
        scores([reward([1, 2], name) for name in names], weights)


def test_each_row_has_a_group():
    with pytest.raises(ValueError, match="1 rows for 2 groups of completions"):
        score_completions([{"prompt": "a"}], [completions_of(["b"]), completions_of(["c"])], [])


# ------------------------------------------------------------------------------------------------------------ loading


def test_names_of_trl():
    rewards = load_rewards(["think_format_reward", "get_soft_overlong_punishment", "get_repetition_penalty_reward"])
    assert rewards[0].name == "think_format_reward"
    ids = [[7] * 8, list(range(1280))]
    by_name = [found(**MESSAGES, completion_ids=ids) for found in rewards]
    assert by_name[0] == [0.0, 1.0]
    assert by_name[1] == [0.0, -1.0]  # TRL's default arguments: at most 1280 tokens, a penalty on the last 256
    assert by_name[2][0] < by_name[2][1] == 0.0


@pytest.mark.parametrize("spec", ["my_rewards.length", "my_rewards:length", "my_package.inner:length"])
def test_paths_to_functions_also_in_the_current_directory(spec, tmp_path, monkeypatch):
    code = "def length(completions, **_):\n    return [len(text) for text in completions]\n"
    (tmp_path / "my_package").mkdir()
    (tmp_path / "my_package" / "inner.py").write_text(code)
    (tmp_path / "my_rewards.py").write_text(code)
    monkeypatch.setattr("sys.path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    [found] = load_rewards(spec)
    assert found.name == "length"
    assert found(**PLAIN) == [8, 16]


def test_names_of_callables():
    class Judge:
        def __call__(self, completions, **_):
            return [0.0] * len(completions)

    rewards = load_rewards([length, functools.partial(length, unit=1), Judge(), length])
    assert [r.name for r in rewards] == ["length", "length_2", "Judge", "length_3"]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("no_such_reward", "Unknown reward function 'no_such_reward'.*think_format_reward.*directory"),
        ("./no/such/model", "Unknown reward function './no/such/model'"),
        ("/no/such/model", "Unknown reward function '/no/such/model'"),
        ("no_such_module.f", "no module 'no_such_module'"),
        ("json.no_such_function", "module 'json' has no function 'no_such_function'"),
        ("json.decoder:NaN", "module 'json.decoder' has no function 'NaN'"),
        (3, "3 is not a reward function"),
    ],
)
def test_unknown_reward_functions(spec, message):
    with pytest.raises(ValueError, match=message):
        load_rewards([spec])


def test_the_error_of_a_module_that_cannot_be_imported_is_raised(tmp_path, monkeypatch):
    (tmp_path / "needs_more.py").write_text("import not_installed_anywhere\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="not_installed_anywhere"):
        load_rewards("needs_more.f")


def test_there_is_one_processing_class_per_reward_function():
    with pytest.raises(ValueError, match=r"\(2\) must match the number of reward functions \(1: length\)"):
        load_rewards([length], [None, None])


def test_one_tokenizer_is_not_shared_by_two_rewards(classifier, tiny_tokenizer):
    """Each model has a vocabulary of its own; TRL refuses it too."""
    with pytest.raises(ValueError, match=r"\(1\) must match the number of reward functions \(2: \w+, length\)"):
        load_rewards([classifier, length], tiny_tokenizer)
    both = load_rewards([classifier, length], [tiny_tokenizer, None])
    assert [reward.processing_class for reward in both] == [tiny_tokenizer, None]


# -------------------------------------------------------------------------------------------------------- classifiers


def single_logit(model, tokenizer, text):
    """The logit of one text, without batch and padding."""
    ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        return float(model(ids).logits[0, 0])


@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_classifier_scores_prompt_and_completion(classifier, tiny_tokenizer, batch_size):
    prompts = ["the film", "a", "we", "I liked this movie", "b"]
    completions = [" is good", " bad plot and so it was", "", " but not the music", " x"]
    [found] = load_rewards(classifier, tiny_tokenizer, settings=RewardSettings(reward_batch_size=batch_size))
    expected = [single_logit(classifier, tiny_tokenizer, p + c) for p, c in zip(prompts, completions, strict=True)]
    assert found(prompts, completions) == pytest.approx(expected, abs=1e-5)
    assert len({round(value, 3) for value in expected}) == 5


def test_classifier_from_a_directory(tiny_reward_dir, tiny_tokenizer):
    from transformers import AutoModelForSequenceClassification

    [found] = load_rewards(tiny_reward_dir)
    assert found.name == "tiny-reward"
    model = AutoModelForSequenceClassification.from_pretrained(tiny_reward_dir)
    expected = [single_logit(model, tiny_tokenizer, p + c) for p, c in zip(*PLAIN.values(), strict=True)]
    assert found(**PLAIN) == pytest.approx(expected, abs=1e-5)
    assert not found.func.model.training


def test_classifier_renders_messages_with_its_chat_template(classifier, tiny_tokenizer, chat_tokenizer):
    [found] = load_rewards(classifier, chat_tokenizer)
    text = "<|im_start|>user\nthe film<|im_end|>\n<|im_start|>assistant\nis good<|im_end|>\n"
    assert found(**MESSAGES)[0] == pytest.approx(single_logit(classifier, chat_tokenizer, text), abs=1e-5)
    with pytest.raises(RewardError, match="tokenizer has no chat template"):
        load_rewards(classifier, tiny_tokenizer)[0](**MESSAGES)


def test_a_classifier_without_a_template_for_conversations_is_found_before_generation(
    tmp_path, classifier, tiny_tokenizer, chat_tokenizer
):
    check_reward_prompts(load_rewards(classifier, chat_tokenizer), MESSAGES["prompts"][0])
    rewards = load_rewards(classifier, tiny_tokenizer)
    check_reward_prompts(rewards, PLAIN["prompts"][0])
    with pytest.raises(ValueError, match=r"reward model '.*' cannot be used.*no chat template.*chat_template\.jinja"):
        check_reward_prompts(rewards, MESSAGES["prompts"][0])
    rows, folder = [{"prompt": MESSAGES["prompts"][0]}], str(tmp_path / "reward")
    classifier.save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    with pytest.raises(ValueError, match="cannot be used: the prompts are conversational"):
        make_trainer("psle", tmp_path, rows, chat=True, reward_funcs=folder)


def test_a_part_of_completions_that_is_not_scored_is_told_once(classifier, chat_tokenizer, caplog):
    """The template of a reward model for reasoning models drops what stands before </think>."""
    chat_tokenizer.chat_template = "{% for m in messages %}{{ m.content.split('</think>')[-1] }}{% endfor %}"
    reward = ClassifierReward(classifier, chat_tokenizer)
    prompt, answers = [{"role": "user", "content": "film"}], ("so</think> good", "good", "bad</think> dull")
    completions = [[{"role": "assistant", "content": answer}] for answer in answers]
    reward([prompt] * 3, completions)
    (warning,) = [record.getMessage() for record in caplog.records if "leaves a part" in record.getMessage()]
    assert "'so</think>'" in warning


def test_the_classifiers_chat_template_gets_the_arguments_of_the_rows(classifier, chat_tokenizer):
    """As the policy's does: the column `chat_template_kwargs`, where the setting of this name is written too."""
    chat_tokenizer.chat_template = "{{ mood }}" + chat_tokenizer.chat_template
    [found] = load_rewards(classifier, chat_tokenizer)
    text = "the film<|im_start|>user\nthe film<|im_end|>\n<|im_start|>assistant\nis good<|im_end|>\n"
    values = found(**MESSAGES, chat_template_kwargs=[{"mood": "the film"}, {}])
    assert values[0] == pytest.approx(single_logit(classifier, chat_tokenizer, text), abs=1e-5)


def test_long_texts_are_truncated_at_the_start(tiny_tokenizer, caplog):
    model = make_model(len(tiny_tokenizer), num_labels=1, max_position_embeddings=8)
    [found] = load_rewards(model, tiny_tokenizer)
    with caplog.at_level(logging.WARNING):
        values = found(["the film", "b"], [" was good but not so good in the end of it" + " very" * 9, "c"])
    assert values[0] == pytest.approx(single_logit(model, tiny_tokenizer, " very" * 8), abs=1e-5)
    assert "8 tokens are truncated" in caplog.text


def test_classifier_without_pad_token(classifier, tiny_tokenizer):
    expected = load_rewards(classifier, make_tokenizer())[0](**PLAIN)
    tiny_tokenizer.pad_token = None
    assert load_rewards(classifier, tiny_tokenizer)[0](**PLAIN) == pytest.approx(expected, abs=1e-5)


def test_classifier_leaves_no_gradients(classifier, tiny_tokenizer):
    load_rewards(classifier, tiny_tokenizer)[0](**PLAIN)
    assert all(parameter.grad is None for parameter in classifier.parameters())


def test_classifiers_that_cannot_be_used(classifier, tiny_tokenizer):
    with pytest.raises(ValueError, match="has 3 labels"):
        load_rewards(make_model(len(tiny_tokenizer), num_labels=3), tiny_tokenizer)
    with pytest.raises(RewardError, match="completion 1 and its prompt are empty"):
        load_rewards(classifier, tiny_tokenizer)[0](["a", ""], ["b", ""])
    with torch.no_grad():
        classifier.score.weight.fill_(math.nan)
    with pytest.raises(RewardError, match="logit for completion 0 is nan"):
        load_rewards(classifier, tiny_tokenizer)[0](**PLAIN)
    with pytest.raises(OSError, match="nobody/no-such-reward"):
        load_rewards("nobody/no-such-reward")


def test_classifier_on_its_own(classifier, tiny_tokenizer):
    [loaded] = load_rewards(classifier, tiny_tokenizer)
    assert ClassifierReward(classifier, tiny_tokenizer)(**PLAIN) == loaded(**PLAIN)


def test_a_function_is_named_by_its_file(tmp_path, monkeypatch):
    """It may import a neighbour, and is run once however often it is named."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    folder = tmp_path / "my folder"
    folder.mkdir()
    (folder / "neighbour_of_rewards.py").write_text("ONE = 1.0\n")
    (folder / "rewards_in_a_file.py").write_text(
        "from neighbour_of_rewards import ONE\n\n\ndef one(completions, **_):\n    return [ONE] * len(completions)\n"
    )
    spec = f"{folder}/rewards_in_a_file.py:one"
    [first], [second] = load_rewards(spec), load_rewards(spec)
    assert first.name == "one" and first(["p"], ["c"]) == [1.0]
    assert first.func is second.func
    for name in ("neighbour_of_rewards", "rewards_in_a_file"):
        monkeypatch.delitem(sys.modules, name)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("none.py:one", "there is no file"),
        ("json.py:one", "another module is called 'json'"),
        ("fails_to_import.py:one", None),
        ("empty_file_of_rewards.py:one", "module '.*empty_file_of_rewards.py' has no function 'one'"),
    ],
)
def test_files_without_the_function(tmp_path, monkeypatch, name, message):
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "json.py").write_text("one = max\n")
    (tmp_path / "fails_to_import.py").write_text("import no_such_module_anywhere\n")
    (tmp_path / "empty_file_of_rewards.py").write_text("")
    with pytest.raises(ValueError if message else ModuleNotFoundError, match=message):
        load_rewards(f"{tmp_path}/{name}")
    assert "fails_to_import" not in sys.modules
    sys.modules.pop("empty_file_of_rewards", None)
