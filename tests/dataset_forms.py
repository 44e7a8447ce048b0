# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
Rows as datasets have them, with their true columns and types of values, and the rows of the schema that they become.

`tests/data/test_formats.py` converts each of them, and `python tests/record_dataset_formats.py` writes the table in
`docs/dataset_formats.md` from them.
"""

from dataclasses import dataclass, field
from typing import Any


def user(text: Any) -> dict[str, Any]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


@dataclass
class Form:
    """
    A form of data.

    Args:
        found_in (`str`): Where it is found: a dataset, a library, or a description.
        name (`str`): Name of its format; empty if it is refused.
        note (`str`): What becomes the prompt and the scores, or why it is refused, for the table.
        rows (`list[dict]`): Rows as the dataset has them.
        becomes (`list[dict]`): What the schema's columns of the converted rows must be.
        settings (`dict`): Arguments of the conversion.
        error (`str`): What the error says, for a form that is refused.
    """

    found_in: str
    name: str
    note: str
    rows: list[dict[str, Any]]
    becomes: list[dict[str, Any]] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    error: str = ""


def becomes(prompt: Any, completions: list[Any], scores: list[float] | None = None) -> dict[str, Any]:
    row = {"prompt": prompt, "completions": completions}
    return row if scores is None else row | {"scores": scores}


QUESTION, GOOD, BAD = [user("Socks?")], [assistant("Fold.")], [assistant("No.")]
IN_PARTS = [{"type": "text", "text": "So"}, {"type": "text", "text": "cks?"}]
TALK = "\n\nHuman: Hi.\n\nAssistant: Hello.\n\nHuman: Socks?\n\nAssistant:"

AS_THEY_ARE = [
    Form(
        "the row schema, as `trl-ext sample` writes it",
        "scored",
        "taken as it is; `ended`, `rewards`, `sources`, and `completion_ids` with `tokenizers` are optional",
        [{"prompt": "Socks?", "completions": [" Fold.", " No."], "scores": [2.0, 1.0]}],
        [becomes("Socks?", [" Fold.", " No."], [2.0, 1.0])],
    ),
    Form(
        "completions without scores",
        "completions",
        "for `trl-ext sample --dataset_completions`, which scores them; training needs `scores`",
        [{"prompt": "Socks?", "completions": [" Fold.", " No."]}],
        [becomes("Socks?", [" Fold.", " No."])],
    ),
    Form(
        "TRL, prompt-only",
        "prompt_only",
        "training generates the completions; other columns go to the reward functions",
        [{"prompt": QUESTION, "solution": "x"}],
        [{"prompt": QUESTION}],
    ),
]

PAIRS = [
    Form(
        "TRL, preference with `prompt`",
        "preference",
        "scores 1 and 0",
        [{"prompt": "Socks?", "chosen": " Fold.", "rejected": ""}],
        [becomes("Socks?", [" Fold.", ""], [1.0, 0.0])],
    ),
    Form(
        "TRL, preference without `prompt`, messages",
        "preference",
        "the prompt is all messages that both share, without the last one of the shorter answer",
        [{"chosen": QUESTION + GOOD, "rejected": QUESTION + BAD}],
        [becomes(QUESTION, [GOOD, BAD], [1.0, 0.0])],
    ),
    Form(
        "Anthropic/hh-rlhf: transcripts without `prompt`",
        "preference",
        "the prompt ends behind the last shared mark of the assistant, whatever words the answers share",
        [{"chosen": f"{TALK} I would fold.", "rejected": f"{TALK} I would not."}],
        [becomes(TALK, [" I would fold.", " I would not."], [1.0, 0.0])],
    ),
    Form(
        "TRL, preference without `prompt`, texts",
        "preference",
        "the prompt is the words that both share, if no other column could hold it",
        [{"chosen": "The film was good.", "rejected": "The film was gory."}],
        [becomes("The film was", [" good.", " gory."], [1.0, 0.0])],
    ),
    Form(
        "the same beside other texts",
        "implicit_prompt",
        "only with `dataset_format: implicit_prompt`",
        [{"chosen": "The film was good.", "rejected": "The film was bad.", "review": "It was a long evening."}],
        [becomes("The film was", [" good.", " bad."], [1.0, 0.0])],
        {"dataset_format": "implicit_prompt"},
    ),
    Form(
        "HuggingFaceH4/ultrafeedback_binarized: `prompt` as text, whole conversations as answers",
        "preference",
        "the prompt is the messages before the answers",
        [
            {
                "prompt": "Socks?",
                "prompt_id": "f0e3",
                "chosen": QUESTION + GOOD,
                "rejected": QUESTION + BAD,
                "messages": QUESTION + GOOD,
                "score_chosen": 8.5,
                "score_rejected": 4.0,
            }
        ],
        [becomes(QUESTION, [GOOD, BAD], [1.0, 0.0])],
    ),
    Form(
        "Intel/orca_dpo_pairs",
        "preference",
        "the prompt is `question` behind `system`",
        [
            {"system": "Be brief.", "question": "Socks?", "chosen": "The fold.", "rejected": "The bin."},
            {"system": "", "question": "Socks?", "chosen": "The fold.", "rejected": "The bin."},
        ],
        [
            becomes("Be brief.\n\nSocks?", ["The fold.", "The bin."], [1.0, 0.0]),
            becomes("Socks?", ["The fold.", "The bin."], [1.0, 0.0]),
        ],
    ),
    Form(
        "argilla/distilabel-intel-orca-dpo-pairs",
        "preference",
        "the prompt is `input` behind `system`; `generations` and `rating` stay as they are",
        [
            {
                "system": "",
                "input": "Socks?",
                "chosen": "Fold.",
                "rejected": "No.",
                "generations": ["Fold.", "No."],
                "order": ["chosen", "rejected"],
                "rating": [9.0, 2.0],
                "status": "unchanged",
            }
        ],
        [becomes("Socks?", ["Fold.", "No."], [1.0, 0.0])],
    ),
    Form(
        "argilla/distilabel-capybara-dpo-7k-binarized",
        "preference",
        "several turns: the prompt is the messages before the last answers",
        [
            {
                "source": "Dove",
                "conversation": [{"input": "Hi.", "output": "Hello."}, {"input": "Socks?", "output": "Fold."}],
                "prompt": "Hi.",
                "chosen": [user("Hi."), assistant("Hello."), *QUESTION, *GOOD],
                "rejected": [user("Hi."), assistant("Hello."), *QUESTION, *BAD],
                "rating_chosen": 5,
                "rating_rejected": 3,
            }
        ],
        [becomes([user("Hi."), assistant("Hello."), *QUESTION], [GOOD, BAD], [1.0, 0.0])],
    ),
    Form(
        "LLaMA-Factory, ShareGPT pairs: `from` and `value`, one message as an answer",
        "preference",
        "the prompt is `conversations` behind `system`",
        [
            {
                "conversations": [{"from": "human", "value": "Socks?"}],
                "chosen": {"from": "gpt", "value": "Fold."},
                "rejected": {"from": "gpt", "value": "No."},
                "system": "Be brief.",
            }
        ],
        [becomes([{"role": "system", "content": "Be brief."}, *QUESTION], [GOOD, BAD], [1.0, 0.0])],
    ),
    Form(
        "LLaMA-Factory, pairs beside `messages`",
        "preference",
        "the prompt is `messages`",
        [{"messages": QUESTION, "chosen": GOOD[0], "rejected": BAD[0]}],
        [becomes(QUESTION, [GOOD, BAD], [1.0, 0.0])],
    ),
    Form(
        "transcripts that repeat `prompt`",
        "preference",
        "the answers are what follows the prompt",
        [{"prompt": TALK, "chosen": f"{TALK} Fold.", "rejected": f"{TALK} No."}],
        [becomes(TALK, [" Fold.", " No."], [1.0, 0.0])],
    ),
    Form(
        "ShareGPT messages in `chosen` and `rejected`",
        "preference",
        "`from` becomes `role`: human, gpt, system, function_call, observation",
        [
            {
                "chosen": [{"from": "human", "value": "Socks?"}, {"from": "gpt", "value": "Fold."}],
                "rejected": [{"from": "human", "value": "Socks?"}, {"from": "gpt", "value": "No."}],
            }
        ],
        [becomes(QUESTION, [GOOD, BAD], [1.0, 0.0])],
    ),
    Form(
        "LLaMA-Factory, Alpaca pairs",
        "preference",
        "the prompt is `instruction` and `input`, with a line break between",
        [{"instruction": "Answer.", "input": "Socks?", "chosen": "Fold.", "rejected": "No."}],
        [becomes("Answer.\nSocks?", ["Fold.", "No."], [1.0, 0.0])],
    ),
    Form(
        "argilla/ultrafeedback-binarized-preferences, argilla/distilabel-math-preference-dpo",
        "chosen_response",
        "scores 1 and 0",
        [{"source": "x", "instruction": "Socks?", "chosen_response": "Fold.", "rejected_response": "No."}],
        [becomes("Socks?", ["Fold.", "No."], [1.0, 0.0])],
    ),
    Form(
        "lvwerra/stack-exchange-paired",
        "stack_exchange_paired",
        "`response_j` is the better one",
        [{"qid": 1, "question": "Socks?", "date": "d", "metadata": ["x"], "response_j": "Fold.", "response_k": "No."}],
        [becomes("Socks?", ["Fold.", "No."], [1.0, 0.0])],
    ),
    Form(
        "PKU-Alignment/PKU-SafeRLHF",
        "pku_safe_rlhf",
        "`better_response_id` decides; `rewards` has `better` and `safer`, of which VAS can learn both",
        [
            {
                "prompt": "Socks?",
                "response_0": "No.",
                "response_1": "Fold.",
                "prompt_source": "Alpaca3-70B",
                "response_0_source": "Alpaca-7B",
                "response_1_source": "Alpaca2-7B",
                "is_response_0_safe": True,
                "is_response_1_safe": True,
                "better_response_id": 1,
                "safer_response_id": 0,
            }
        ],
        [
            becomes("Socks?", ["No.", "Fold."], [0.0, 1.0])
            | {"rewards": {"better": [0.0, 1.0], "safer": [1.0, 0.0]}, "sources": ["Alpaca-7B", "Alpaca2-7B"]}
        ],
    ),
    Form(
        "stanfordnlp/SHP",
        "shp",
        "the prompt is `history`; `labels` is 1 if A is preferred",
        [
            {
                "post_id": "x",
                "domain": "askculinary_train",
                "history": "Socks?",
                "human_ref_A": "No.",
                "human_ref_B": "Fold.",
                "labels": 0,
                "score_A": 2,
                "score_B": 9,
            }
        ],
        [becomes("Socks?", ["No.", "Fold."], [0.0, 1.0])],
    ),
    Form(
        "openai/webgpt_comparisons",
        "webgpt_comparisons",
        "the prompt is `full_text` of `question`; `score_0` and `score_1` are the scores, 0 and 0 for a tie",
        [
            {
                "question": {"dataset": "eli5", "id": "1", "full_text": "Socks?"},
                "quotes_0": {"title": ["t"], "extract": ["e"]},
                "answer_0": "No.",
                "tokens_0": {"prefix": [1], "completion": [2]},
                "score_0": -1.0,
                "quotes_1": {"title": ["t"], "extract": ["e"]},
                "answer_1": "Fold [1].",
                "tokens_1": {"prefix": [1], "completion": [2]},
                "score_1": 1.0,
            }
        ],
        [becomes("Socks?", ["No.", "Fold [1]."], [-1.0, 1.0])],
    ),
    Form(
        "openai/summarize_from_feedback (comparisons)",
        "summarize_from_feedback",
        "the prompt is subreddit, title and post (or the article) with `TL;DR:`; `choice` is the better summary",
        [
            {
                "info": {
                    "id": "1",
                    "post": "Long.",
                    "title": "Socks?",
                    "subreddit": "AskReddit",
                    "site": None,
                    "article": None,
                },
                "summaries": [
                    {"text": " No.", "policy": "ppo", "note": None},
                    {"text": " Fold.", "policy": "sup", "note": None},
                ],
                "choice": 1,
                "worker": "w",
                "batch": "b",
                "split": "train",
                "extra": {"confidence": 5},
            }
        ],
        [becomes("SUBREDDIT: r/AskReddit\n\nTITLE: Socks?\n\nPOST: Long.\n\nTL;DR:", [" No.", " Fold."], [0.0, 1.0])],
    ),
    Form(
        "nvidia/HelpSteer2 (preference)",
        "helpsteer2_preference",
        "`preference_strength` from -3 (the first is better) to 3; other numbers are no verdict",
        [
            {"prompt": "Socks?", "response_1": "Fold.", "response_2": "No.", "preference_strength": -2},
            {"prompt": "Socks?", "response_1": "Fold.", "response_2": "Bin.", "preference_strength": 0},
            {"prompt": "Socks?", "response_1": "Fold.", "response_2": "No.", "preference_strength": -100},
        ],
        [becomes("Socks?", ["Fold.", "No."], [2.0, -2.0]), becomes("Socks?", ["Fold.", "Bin."], [0.0, 0.0])],
    ),
    Form(
        "nvidia/HelpSteer3 (preference)",
        "helpsteer3",
        "the prompt is `context`; `overall_preference` from -3 (the first is better) to 3",
        [
            {
                "domain": "general",
                "language": "english",
                "context": QUESTION,
                "response1": "No.",
                "response2": "Fold.",
                "overall_preference": 3,
                "individual_preference": [{"score": 3, "reasoning": "r"}],
            }
        ],
        [becomes(QUESTION, [BAD, GOOD], [-3.0, 3.0])],
    ),
    Form(
        "lmsys/chatbot_arena_conversations, lmsys/mt_bench_human_judgments",
        "arena",
        "the prompt is the messages that both share; `winner` decides, a tie gives both the same score",
        [
            {
                "question_id": "1",
                "model_a": "x",
                "model_b": "y",
                "winner": "model_b",
                "conversation_a": QUESTION + BAD,
                "conversation_b": QUESTION + GOOD,
                "turn": 1,
            },
            {
                "question_id": "2",
                "model_a": "x",
                "model_b": "y",
                "winner": "tie (bothbad)",
                "conversation_a": QUESTION + BAD,
                "conversation_b": QUESTION + GOOD,
                "turn": 1,
            },
        ],
        [becomes(QUESTION, [BAD, GOOD], [0.0, 1.0]), becomes(QUESTION, [BAD, GOOD], [0.5, 0.5])],
    ),
    Form(
        "tatsu-lab/alpaca_farm",
        "alpaca_farm",
        "the prompt is `instruction` and `input`; `preference` is 1 or 2",
        [{"instruction": "Socks?", "input": "", "output_1": "No.", "output_2": "Fold.", "preference": 2}],
        [becomes("Socks?", ["No.", "Fold."], [0.0, 1.0])],
    ),
    Form(
        "files for OpenAI's fine-tuning by preferences",
        "openai_preference",
        "the prompt is `messages` of `input`; its `tools` reach the chat template",
        [{"input": {"messages": QUESTION, "tools": []}, "preferred_output": GOOD, "non_preferred_output": BAD}],
        [becomes(QUESTION, [GOOD, BAD], [1.0, 0.0])],
    ),
    Form(
        "messages with contents in parts, all of them text",
        "preference",
        'the texts of `[{"type": "text", "text": ...}]` are joined, in all forms',
        [{"prompt": [user(IN_PARTS)], "chosen": GOOD, "rejected": BAD}],
        [becomes(QUESTION, [GOOD, BAD], [1.0, 0.0])],
    ),
]

LISTS = [
    Form(
        "a conversation as the prompt, texts as completions",
        "messages_and_texts",
        "completions become messages of the assistant; one message needs no list; the same without `scores`",
        [{"prompt": QUESTION, "completions": ["Fold.", "No."], "scores": [2.0, 1.0]}],
        [becomes(QUESTION, [GOOD, BAD], [2.0, 1.0])],
    ),
    Form(
        "a text as the prompt, messages as completions",
        "messages_and_texts",
        "the prompt becomes a message of the user",
        [{"prompt": "Socks?", "completions": [GOOD, BAD], "scores": [2.0, 1.0]}],
        [becomes(QUESTION, [GOOD, BAD], [2.0, 1.0])],
    ),
    Form(
        "the row schema beside a system prompt",
        "scored_behind_system",
        "the prompt is `prompt` behind `system`, unless it begins with it; the same without `scores`",
        [{"system": "Be brief.", "prompt": "Socks?", "completions": [" Fold.", " No."], "scores": [2.0, 1.0]}],
        [becomes("Be brief.\n\nSocks?", [" Fold.", " No."], [2.0, 1.0])],
    ),
    Form(
        "the reference code of RRHF: `query`, `responses`, `scores`",
        "query_responses",
        "taken over",
        [{"query": "Socks?", "responses": ["No.", "Fold."], "scores": [1, 2]}],
        [becomes("Socks?", ["No.", "Fold."], [1.0, 2.0])],
    ),
    Form(
        "openbmb/UltraFeedback",
        "ultrafeedback",
        "`overall_score`, or else `fine-grained_score`; the system prompts differ between answers and are left out",
        [
            {
                "source": "evol_instruct",
                "instruction": "Socks?",
                "models": ["alpaca-7b", "gpt-4"],
                "completions": [
                    {
                        "annotations": {"helpfulness": {"Rating": "2"}},
                        "custom_system_prompt": "Help.",
                        "model": "alpaca-7b",
                        "principle": "helpfulness",
                        "response": "No.",
                        "critique": "c",
                        "fine-grained_score": 2.5,
                        "overall_score": 2.0,
                    },
                    {
                        "annotations": {"helpfulness": {"Rating": "5"}},
                        "custom_system_prompt": "Be honest.",
                        "model": "gpt-4",
                        "principle": "honesty",
                        "response": "Fold.",
                        "critique": "c",
                        "fine-grained_score": 4.75,
                        "overall_score": 8.5,
                    },
                ],
                "correct_answers": ["None"],
                "incorrect_answers": ["None"],
            },
            {
                "source": "evol_instruct",
                "instruction": "Shoes?",
                "models": [],
                "completions": [],
                "correct_answers": ["None"],
                "incorrect_answers": ["None"],
            },
        ],
        [becomes("Socks?", ["No.", "Fold."], [2.0, 8.5]) | {"sources": ["alpaca-7b", "gpt-4"]}],
    ),
    Form(
        "berkeley-nest/Nectar",
        "nectar",
        "rank 1 is the best, so the score is minus the rank",
        [
            {
                "prompt": "\n\nHuman: Socks?\n\nAssistant: ",
                "answers": [
                    {"answer": "Fold.", "model": "gpt-4", "rank": 1.0},
                    {"answer": "No.", "model": "llama-2-7b-chat", "rank": 2.0},
                ],
                "turns": 1,
                "num_responses": 2,
                "source": ["sharegpt"],
                "good_natured": True,
            }
        ],
        [becomes("\n\nHuman: Socks?\n\nAssistant: ", ["Fold.", "No."], [-1.0, -2.0])],
    ),
    Form(
        "HuggingFaceH4/stack-exchange-preferences",
        "stack_exchange_preferences",
        "the score is `pm_score`, from the votes",
        [
            {
                "qid": 1,
                "question": "<p>Socks?</p>",
                "answers": [
                    {"answer_id": 1, "author": "a", "pm_score": 1, "selected": False, "text": "No."},
                    {"answer_id": 2, "author": "b", "pm_score": 4, "selected": True, "text": "Fold."},
                ],
                "date": "2014/05/13",
                "metadata": ["x"],
            }
        ],
        [becomes("<p>Socks?</p>", ["No.", "Fold."], [1.0, 4.0])],
    ),
    Form(
        "distilabel, UltraFeedback task",
        "distilabel",
        "answers without a rating are left out",
        [{"instruction": "Socks?", "generations": ["No.", "Bin.", "Fold."], "ratings": [1.0, None, 5.0]}],
        [becomes("Socks?", ["No.", "Fold."], [1.0, 5.0])],
    ),
    Form(
        "Alpaca rankings: `responses` with `rank`",
        "ranked_answers",
        "rank 1 is the best; also `completions`, `answers`, `outputs` with `scores`, `ratings` or `ranks`",
        [{"instruction": "Answer.", "input": "Socks?", "responses": ["No.", "Fold."], "rank": [2, 1]}],
        [becomes("Answer.\nSocks?", ["No.", "Fold."], [-2.0, -1.0])],
    ),
    Form(
        "lists of answers that hold their score",
        "answer_objects",
        "a text in `text`, `answer`, `response` or `content`; `score`, `rating`, `reward` or `rank`",
        [{"query": "Socks?", "responses": [{"text": "No.", "reward": 0.1}, {"text": "Fold.", "reward": 0.9}]}],
        [becomes("Socks?", ["No.", "Fold."], [0.1, 0.9])],
    ),
    Form(
        "LLaMA-Factory, comparisons with a list `output`",
        "best_first",
        "in order, the best first",
        [{"instruction": "Socks?", "input": "", "output": ["Fold.", "Bin.", "No."]}],
        [becomes("Socks?", ["Fold.", "Bin.", "No."], [2.0, 1.0, 0.0])],
    ),
]

GROUPS = [
    Form(
        "nvidia/HelpSteer2",
        "helpsteer2",
        "rows with one prompt become one; scores are `helpfulness`; VAS learns the attributes that `heads` names",
        [
            {"prompt": "Socks?", "response": "No.", "helpfulness": 1, "correctness": 3, "coherence": 4},
            {"prompt": "Shoes?", "response": "Tie.", "helpfulness": 2, "correctness": 2, "coherence": 4},
            {"prompt": "Socks?", "response": "Fold.", "helpfulness": 4, "correctness": 4, "coherence": 4},
        ],
        [
            becomes("Socks?", ["No.", "Fold."], [1.0, 4.0])
            | {"rewards": {"helpfulness": [1, 4], "correctness": [3, 4], "coherence": [4, 4]}},
            becomes("Shoes?", ["Tie."], [2.0])
            | {"rewards": {"helpfulness": [2], "correctness": [2], "coherence": [4]}},
        ],
    ),
    Form(
        "TRL, unpaired preference",
        "unpaired_preference",
        "rows with the same prompt become one; `label` is the score, 1 or 0",
        [
            {"prompt": QUESTION, "completion": GOOD, "label": True},
            {"prompt": QUESTION, "completion": BAD, "label": False},
        ],
        [becomes(QUESTION, [GOOD, BAD], [1.0, 0.0])],
    ),
    Form(
        "LLaMA-Factory, data for KTO: conversations with `label`",
        "unpaired_conversation",
        "the same for the last message",
        [{"messages": QUESTION + GOOD, "label": True}, {"messages": QUESTION + BAD, "label": False}],
        [becomes(QUESTION, [GOOD, BAD], [1.0, 0.0])],
    ),
    Form(
        "conversations whose last message has a score",
        "scored_conversation",
        "the same; `score`, `reward` or `rating`, or `rank`, of which 1 is the best",
        [
            {"messages": QUESTION + GOOD, "score": 4.5, "by": "x"},
            {"messages": QUESTION + BAD, "score": 1.0, "by": "x"},
        ],
        [becomes(QUESTION, [GOOD, BAD], [4.5, 1.0]) | {"by": "x"}],
    ),
    Form(
        "files with one answer and its score in each row",
        "one_answer_per_row",
        "rows with the same prompt become one; columns that differ between them are left out; a score may be text",
        [
            {"question": "Socks?", "answer": "No.", "score": 0.5, "topic": "socks", "by": "x"},
            {"question": "Socks?", "answer": "Fold.", "score": 1.5, "topic": "socks", "by": "y"},
        ],
        [becomes("Socks?", ["No.", "Fold."], [0.5, 1.5]) | {"topic": "socks"}],
    ),
    Form(
        "OpenAssistant/oasst1 and oasst2, one message in a row",
        "oasst",
        "every user's message with ranked answers, below its conversation; rank 0 is the best",
        [
            {"message_id": "1", "parent_id": None, "text": "Hi.", "role": "prompter", "lang": "en", "rank": None},
            {"message_id": "2", "parent_id": "1", "text": "Hello.", "role": "assistant", "lang": "en", "rank": 0},
            {"message_id": "3", "parent_id": "2", "text": "Socks?", "role": "prompter", "lang": "en", "rank": None},
            {"message_id": "4", "parent_id": "3", "text": "No.", "role": "assistant", "lang": "en", "rank": 1},
            {"message_id": "5", "parent_id": "3", "text": "Fold.", "role": "assistant", "lang": "en", "rank": 0},
        ],
        [
            becomes([user("Hi.")], [[assistant("Hello.")]], [0.0]),
            becomes([user("Hi."), assistant("Hello."), *QUESTION], [BAD, GOOD], [-1.0, 0.0]),
        ],
    ),
    Form(
        "OpenAssistant/oasst1 and oasst2, a tree in a row",
        "oasst_trees",
        "the same",
        [
            {
                "message_tree_id": "1",
                "tree_state": "ready_for_export",
                "prompt": {
                    "message_id": "1",
                    "text": "Socks?",
                    "role": "prompter",
                    "replies": [
                        {"message_id": "2", "text": "No.", "role": "assistant", "rank": 1, "replies": []},
                        {"message_id": "3", "text": "Fold.", "role": "assistant", "rank": 0, "replies": []},
                    ],
                },
            }
        ],
        [becomes(QUESTION, [BAD, GOOD], [-1.0, 0.0])],
    ),
]

PROMPTS = [
    Form(
        "TRL, prompt-completion; Alpaca instructions; GSM8K",
        "prompt_completion",
        "prompts; the answer has no score, and is for `trl-ext sample --dataset_completions` and PSLE's `sft_dataset`",
        [{"question": "Socks?", "answer": "Fold."}],
        [becomes("Socks?", ["Fold."])],
    ),
    Form(
        "TRL, language modeling with `messages`; ShareGPT `conversations`",
        "conversation",
        "the same, where the last message is the answer",
        [{"conversations": [{"from": "human", "value": "Socks?"}, {"from": "gpt", "value": "Fold."}]}],
        [becomes(QUESTION, [GOOD])],
    ),
    Form(
        "prompts in a column `question`, `query`, `instruction` or `conversations`, or beside `system`",
        "question",
        "prompts, behind the system prompt",
        [{"system_prompt": "Be brief.", "query": QUESTION}],
        [{"prompt": [{"role": "system", "content": "Be brief."}, *QUESTION]}],
    ),
    Form(
        "any other names",
        "scored",
        "name the columns: `columns: {prompt: ask, completions: replies, scores: marks}`",
        [{"ask": "Socks?", "replies": [" Fold.", " No."], "marks": [2.0, 1.0]}],
        [becomes("Socks?", [" Fold.", " No."], [2.0, 1.0])],
        {"columns": {"prompt": "ask", "completions": "replies", "scores": "marks"}},
    ),
]

REFUSED = [
    Form(
        "pairs without a prompt, beside a column that could hold it",
        "",
        "the prompt is ambiguous: set `columns: {prompt: ...}`",
        [{"ask": "How many socks?", "chosen": "The number is two.", "rejected": "The number is six."}],
        error="'ask' may hold the prompt.*columns: {prompt",
    ),
    Form(
        "pairs without a prompt that share no word",
        "",
        "set `columns`, or remove the row",
        [{"chosen": "Two.", "rejected": "Six."}],
        error="do not begin with words that end before two different answers",
    ),
    Form(
        "identical texts without a prompt",
        "",
        "remove the row; identical transcripts and conversations are taken",
        [{"chosen": "The film was good.", "rejected": "The film was good."}],
        error="Row 0 of the train dataset.*do not begin with words",
    ),
    Form(
        "two columns that could be the prompt",
        "",
        "set `columns`",
        [{"question": "Socks?", "context": "Feet.", "chosen": "Fold.", "rejected": "No."}],
        error="'question' and 'context' may both be the prompt",
    ),
    Form(
        "a column `image` or `images`",
        "",
        "as TRL does for a text model",
        [{"prompt": "Socks?", "chosen": "Fold.", "rejected": "No.", "images": ["socks.png"]}],
        error="has a column 'images', but the methods here train on text",
    ),
    Form(
        "messages with parts that are images, sounds or files",
        "",
        "the same",
        [{"prompt": [user([*IN_PARTS[:1], {"type": "image", "text": None}])], "chosen": GOOD, "rejected": BAD}],
        error="Row 0 of the train dataset, column 'prompt': holds a message with a part of type 'image', but the ",
    ),
    Form(
        "any other columns",
        "",
        "the error lists them; set `columns`",
        [{"ask": "Socks?", "reply": "Fold."}],
        error="lacks the column 'prompt'; it has 'ask', 'reply'.*columns: {prompt: question}",
    ),
]

CONVERTED = [*PAIRS, *LISTS, *GROUPS, *PROMPTS]
