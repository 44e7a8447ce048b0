# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Formats with two answers to a prompt, of which one is better."""

import json
from collections.abc import Callable
from typing import Any

from ..messages import is_messages, with_roles
from ..pair_prompts import shared_messages, split_pair, transcript_end
from ..schema import DataError, as_completion
from .dataset_format import DatasetFormat, Row, is_number, prompt_of, required_prompt, scored_row, with_system


# ------------------------------------------------------------------------------------------------ chosen and rejected


def _preference(row: Row) -> list[Row]:
    """`chosen` and `rejected`, with a prompt in a column of its own, in both answers, or in both places."""
    _check_pair(row)
    chosen, rejected = row["chosen"], row["rejected"]
    # The question of a transcript is in it, whatever other columns there are.
    hidden = "prompt" not in row and isinstance(chosen, str) and transcript_end(chosen, rejected)
    prompt = None if hidden else prompt_of(row)
    if prompt is None:
        prompt, chosen, rejected = split_pair(row)
        prompt = with_system(row, prompt)
    elif is_messages(chosen):
        prompt, chosen, rejected = _with_messages(row, prompt)
    elif _repeats(prompt, chosen) and _repeats(prompt, rejected):
        chosen, rejected = chosen[len(prompt) :], rejected[len(prompt) :]
    return _chosen_and_rejected(prompt, chosen, rejected)


def _repeats(prompt: Any, answer: str) -> bool:
    """Whether an answer is a transcript with the prompt in it. Other texts may begin with it on purpose (code)."""
    return isinstance(prompt, str) and answer.startswith(prompt) and transcript_end(prompt, prompt) > 0


def _implicit_prompt(row: Row) -> list[Row]:
    """The prompt is what both answers begin with, whatever other columns there are."""
    _check_pair(row)
    prompt, chosen, rejected = split_pair(row, words=True)
    return _chosen_and_rejected(with_system(row, prompt), chosen, rejected)


def _check_pair(row: Row) -> None:
    for name in ("chosen", "rejected"):
        value = row[name]
        if not isinstance(value, str) and not is_messages(value):
            found = "nothing (null)" if value is None else f"{type(value).__name__} {str(value)[:60]!r}"
            remedy = "Remove the row."
            if isinstance(value, list) and value:
                remedy = "Several answers belong in a column `completions`, beside their `scores`."
            raise DataError(f"column {name!r}: must be text or messages, got {found}. {remedy}")
    if isinstance(row["chosen"], str) is not isinstance(row["rejected"], str):
        raise DataError("columns 'chosen' and 'rejected': one is text, the other messages. Make them alike.")


def _with_messages(row: Row, prompt: Any) -> tuple[Any, Any, Any]:
    """Prompt and answers where the answers may be whole conversations that repeat the prompt (H4's UltraFeedback)."""
    chosen, rejected = row["chosen"], row["rejected"]
    if isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt}]
    if chosen[0]["role"] in ("assistant", "tool"):
        return prompt, chosen, rejected
    shared = shared_messages(chosen, rejected)
    if not shared:
        raise DataError(
            "columns 'chosen' and 'rejected': they begin with different messages of a user, so they have no prompt in "
            "common. Remove the row."
        )
    repeated = chosen[:shared]
    if repeated[: len(prompt)] != prompt and isinstance(row.get("prompt"), list):
        repeated = [*prompt, *repeated]
    return with_system(row, repeated), chosen[shared:], rejected[shared:]


def _chosen_and_rejected(prompt: Any, chosen: Any, rejected: Any) -> list[Row]:
    answers = [as_completion({"prompt": prompt}, x) if isinstance(x, str) else x for x in (chosen, rejected)]
    # An empty answer is one that ended at once, as in TRL.
    return [
        {
            "prompt": prompt,
            "completions": answers,
            "scores": [1.0, 0.0],
            "ended": [True, True],
            "sources": ["chosen", "rejected"],
        }
    ]


# ---------------------------------------------------------------------------------------------- two answers, a verdict


def _two(first: str, second: str, verdict: Callable[[Row], tuple[Any, Any]]) -> Callable[[Row], list[Row]]:
    """The conversion of rows with two columns of answers; `verdict` gives their scores."""

    def convert(row: Row) -> list[Row]:
        return scored_row(required_prompt(row), [row[first], row[second]], verdict(row), sources=[first, second])

    return convert


def _is_first(value: Any, first: Any, second: Any) -> tuple[Any, Any]:
    """Scores 1 and 0 for the answer that `value` names, none if it names neither."""
    return (1.0, 0.0) if value == first else (0.0, 1.0) if value == second else (None, None)


def _by_strength(strength: Any, largest: int = 3) -> tuple[Any, Any]:
    """Scores from -3 (the first is much better) to 3 (the second is); larger numbers are no verdict."""
    if not is_number(strength) or abs(strength) > largest:
        return None, None
    return -float(strength), float(strength)


def _pku_safe_rlhf(row: Row) -> list[Row]:
    """`better_response_id` decides; with the safer one beside it, both are kept in `rewards`."""
    answers = [row["response_0"], row["response_1"]]
    better = _is_first(row["better_response_id"], 0, 1)
    rewards = {"better": better}
    if "safer_response_id" in row:
        rewards["safer"] = _is_first(row["safer_response_id"], 0, 1)
    sources = [row.get("response_0_source") or "response_0", row.get("response_1_source") or "response_1"]
    return scored_row(required_prompt(row), answers, better, sources=sources, rewards=rewards)


def _webgpt(row: Row) -> list[Row]:
    prompt = row["question"]["full_text"]
    answers, scores = [row["answer_0"], row["answer_1"]], [row["score_0"], row["score_1"]]
    return scored_row(prompt, answers, scores, sources=["answer_0", "answer_1"])


def _summaries(row: Row) -> list[Row]:
    """The prompt is that of "Learning to summarize from human feedback" (arXiv 2009.01325), table 4."""
    info, summaries = row["info"], row["summaries"]
    if info.get("post"):
        title = f"SUBREDDIT: r/{info.get('subreddit')}\n\nTITLE: {info.get('title')}"
        prompt = f"{title}\n\nPOST: {info['post']}\n\nTL;DR:"
    else:
        prompt = f"Article:\n{info.get('article')}\n\nTL;DR:"
    texts = [" " + summary["text"].lstrip() if summary["text"] else None for summary in summaries]
    sources = [summary.get("policy") or "summaries" for summary in summaries]
    return scored_row(prompt, texts, _is_first(row["choice"], 0, 1), sources=sources)


def _openai(row: Row) -> list[Row]:
    """The file for OpenAI's fine-tuning by preferences: `input` has the messages of the prompt and the tools."""
    source = row["input"]
    prompt = with_roles(source["messages"])
    found = _chosen_and_rejected(prompt, row["preferred_output"], row["non_preferred_output"])
    if source.get("tools"):
        found[0]["tools"] = json.dumps(source["tools"])
    return found


def _arena(row: Row) -> list[Row]:
    """Two conversations that begin alike; a tie gives both the same score."""
    first, second = row["conversation_a"], row["conversation_b"]
    if not is_messages(first) or not is_messages(second):
        return []
    shared = shared_messages(first, second)
    winner = str(row["winner"])
    scores = (0.5, 0.5) if winner.startswith("tie") else _is_first(winner, "model_a", "model_b")
    sources = [row.get("model_a") or "conversation_a", row.get("model_b") or "conversation_b"]
    return scored_row(first[:shared], [first[shared:], second[shared:]], scores, sources=sources) if shared else []


def _preferred_output(row: Row) -> tuple[Any, Any]:
    """1 or 2; AlpacaEval's automatic preferences lie between them."""
    preference = row["preference"]
    if not is_number(preference) or not 1 <= preference <= 2:
        return None, None
    return 2.0 - preference, preference - 1.0


def _renamed(better: str, worse: str) -> Callable[[Row], list[Row]]:
    return _two(better, worse, lambda row: (1.0, 0.0))


FORMATS = [
    DatasetFormat(
        "webgpt_comparisons",
        "openai/webgpt_comparisons",
        ("question", "answer_0", "answer_1", "score_0", "score_1"),
        _webgpt,
        matches=lambda row: isinstance(row["question"], dict),
        consumes=("answer_0", "answer_1", "score_0", "score_1", "tokens_0", "tokens_1", "quotes_0", "quotes_1"),
    ),
    DatasetFormat(
        "summarize_from_feedback",
        "openai/summarize_from_feedback (comparisons)",
        ("info", "summaries", "choice"),
        _summaries,
        consumes=("summaries", "choice"),
    ),
    DatasetFormat(
        "pku_safe_rlhf",
        "PKU-Alignment/PKU-SafeRLHF",
        ("prompt", "response_0", "response_1", "better_response_id"),
        _pku_safe_rlhf,
        consumes=("response_0", "response_1", "better_response_id", "safer_response_id"),
    ),
    DatasetFormat(
        "shp",
        "stanfordnlp/SHP",
        ("history", "human_ref_A", "human_ref_B", "labels"),
        _two("human_ref_A", "human_ref_B", lambda row: _is_first(row["labels"], 1, 0)),
        consumes=("human_ref_A", "human_ref_B", "labels"),
    ),
    DatasetFormat(
        "stack_exchange_paired",
        "lvwerra/stack-exchange-paired",
        ("question", "response_j", "response_k"),
        _renamed("response_j", "response_k"),
        consumes=("response_j", "response_k"),
    ),
    DatasetFormat(
        "helpsteer2_preference",
        "nvidia/HelpSteer2 (preference)",
        ("prompt", "response_1", "response_2", "preference_strength"),
        _two("response_1", "response_2", lambda row: _by_strength(row["preference_strength"])),
        consumes=("response_1", "response_2", "preference_strength"),
    ),
    DatasetFormat(
        "helpsteer3",
        "nvidia/HelpSteer3 (preference)",
        ("context", "response1", "response2", "overall_preference"),
        _two("response1", "response2", lambda row: _by_strength(row["overall_preference"])),
        consumes=("response1", "response2", "overall_preference"),
    ),
    DatasetFormat(
        "arena",
        "lmsys/chatbot_arena_conversations, lmsys/mt_bench_human_judgments",
        ("conversation_a", "conversation_b", "winner"),
        _arena,
        consumes=("conversation_a", "conversation_b", "winner"),
    ),
    DatasetFormat(
        "alpaca_farm",
        "tatsu-lab/alpaca_farm, tatsu-lab/alpaca_eval",
        ("instruction", "output_1", "output_2", "preference"),
        _two("output_1", "output_2", _preferred_output),
        consumes=("output_1", "output_2", "preference"),
    ),
    DatasetFormat(
        "chosen_response",
        "argilla/ultrafeedback-binarized-preferences, argilla/distilabel-math-preference-dpo",
        ("chosen_response", "rejected_response"),
        _renamed("chosen_response", "rejected_response"),
        consumes=("chosen_response", "rejected_response"),
    ),
    DatasetFormat(
        "openai_preference",
        "files for OpenAI's fine-tuning by preferences",
        ("input", "preferred_output", "non_preferred_output"),
        _openai,
        matches=lambda row: isinstance(row["input"], dict) and "messages" in row["input"],
        consumes=("input", "preferred_output", "non_preferred_output"),
    ),
    DatasetFormat(
        "preference",
        "TRL's preference data",
        ("chosen", "rejected"),
        _preference,
        consumes=("chosen", "rejected"),
    ),
    DatasetFormat(
        "implicit_prompt",
        "only by name: pairs that begin with their prompt, beside other columns with text",
        ("chosen", "rejected"),
        _implicit_prompt,
        matches=lambda row: False,
        consumes=("chosen", "rejected"),
    ),
]
