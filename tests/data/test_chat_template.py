# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""What chat templates do to prompts and completions: reasoning, ends of turns, arguments."""

import json

import pytest
from dataset_rows import USER, assistant
from thinking import END, TEMPLATES, make_byte_tokenizer

from trl_ext.data.chat_template import (
    continuation,
    end_of_turn,
    lost_part,
    missing_tools,
    render,
    template_kwargs,
    unstopped_turn,
    with_template_kwargs,
)


REASONED = "the plot\n</think>\n\ngood"  # as it is generated behind a prompt that opens the thought


def rendered(tokenizer, completion, ended, notes, **kwargs):
    before = render(tokenizer, USER, add_generation_prompt=True, **kwargs)
    return continuation(tokenizer, USER, completion, ended, before=before, notes=notes, **kwargs)


def behind(template, text, ended=True, **kwargs):
    """The text of a completion behind its prompt, and the notes about it."""
    notes = {}
    tokenizer = make_byte_tokenizer(template)
    return rendered(tokenizer, assistant(text), ended, notes, **kwargs), notes


@pytest.mark.parametrize(
    ("template", "text", "expected"),
    [
        # Worked by hand from what the templates say.
        ("plain", "good", f"good{END}\n"),
        ("plain", f"<think>\n{REASONED}", f"<think>\n{REASONED}{END}\n"),
        ("r1", REASONED, REASONED + END),  # the template drops the reasoning
        ("r1", f"<think>\n{REASONED}", REASONED + END),  # and the prompt opens the thought
        ("r1", "good", f"good{END}"),  # warned about: an answer within the thought
        ("qwen3", "good", f"<think>\n\n</think>\n\ngood{END}\n"),
        ("qwen3", f"<think>\n{REASONED}", f"<think>\n{REASONED}{END}\n"),
        ("qwen3", "<think>the plot</think>good", f"<think>the plot</think>good{END}\n"),  # not in another white space
        ("qwen3.5", "good", f"\n</think>\n\ngood{END}\n"),
        ("qwen3.5", REASONED, f"{REASONED}{END}\n"),
        ("qwen3.5", "the plot</think>good", f"the plot</think>good{END}\n"),
        ("qwen3.5", f"<think>\n{REASONED}", f"{REASONED}{END}\n"),
        ("glm", "good", "<think></think>\ngood"),
        ("glm", "<think>the plot</think>\ngood", "<think>the plot</think>\ngood"),
        ("glm", "<think>the\n</think>\n\ngood", "<think>the\n</think>\n\ngood"),
        ("nemotron", "good", f"</think>good{END}\n"),  # the prompt ends in <think> and a line break
        ("nemotron", REASONED, f"{REASONED}{END}\n"),
    ],
)
def test_completions_follow_the_prompt_and_keep_their_reasoning(template, text, expected):
    assert behind(template, text)[0] == expected


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_completion_that_was_cut_is_what_was_generated(template):
    """No empty thought in front, no second opening, no white space less, and no end."""
    assert behind(template, " the plo", ended=False) == (" the plo", {})
    opens = template in ("r1", "qwen3.5", "nemotron")
    assert behind(template, "<think>\nthe plo", ended=False)[0] == ("the plo" if opens else "<think>\nthe plo")


def test_the_last_of_several_messages_that_was_cut_is_what_was_generated():
    notes = {}
    turns = [*assistant("good"), *USER, *assistant(" the plo")]
    text = rendered(make_byte_tokenizer("qwen3.5"), turns, False, notes)
    assert (
        text == f"\n</think>\n\ngood{END}\n<|im_start|>user\nquestion{END}\n<|im_start|>assistant\n<think>\n the plo"
    )
    assert notes == {}


def test_a_closed_thought_in_the_prompt_stays_closed():
    off = {"enable_thinking": False}
    assert behind("qwen3.5", "good", **off) == (f"good{END}\n", {})
    assert behind("qwen3", "good", **off) == (f"good{END}\n", {})
    assert behind("glm", "good", **off) == ("\ngood", {})


def test_the_text_that_a_template_drops_is_noted():
    assert behind("r1", REASONED)[1] == {"left out": "the plot\n</think>"}
    assert behind("r1", "good")[1] == {"prompt": "<think>\n"}
    assert behind("nemotron", "good")[1] == {"prompt": "\n"}
    assert behind("plain", REASONED)[1] == {}


def test_a_template_that_renders_the_prompt_differently_when_a_completion_follows():
    """The answer stands behind the prompt as it is asked, not behind the other rendering of the prompt."""
    template = TEMPLATES["plain"].replace("{{ '<|im_start|>' + m.role", "{{ 'x' * (messages | length) + m.role", 1)
    text, notes = behind(template, "good")
    assert text == f"good{END}\n"
    assert notes["prompt"].endswith("<|im_start|>assistant\n")


def test_reasoning_in_fields_that_a_template_ignores_is_noted():
    notes = {}
    turn = [{"role": "assistant", "content": "good", "reasoning_content": "the plot"}]
    rendered(make_byte_tokenizer("plain"), turn, True, notes)
    assert notes == {"lost": "the plot"}


def test_reasoning_lost_in_a_completion_of_several_messages_is_noted():
    notes = {}
    turns = [*assistant(REASONED), *USER, *assistant("bad")]
    text = rendered(make_byte_tokenizer("r1"), turns, True, notes)
    assert text.endswith(f"bad{END}")
    assert notes["lost"] == "the plot\n</think>"


CALL = {"type": "function", "function": {"name": "get_weather", "arguments": {"city": "Paris"}}}


@pytest.mark.parametrize("content", ["", "I look."])
def test_a_tool_call_that_a_template_ignores_is_noted(content):
    """Otherwise the model would learn to say nothing where it should call a tool."""
    notes = {}
    turn = [{"role": "assistant", "content": content, "tool_calls": [CALL]}]
    rendered(make_byte_tokenizer("plain"), turn, True, notes)
    assert json.loads(notes["lost"]) == CALL["function"]


def test_a_tool_call_that_a_template_writes_is_not_noted():
    notes, tokenizer = {}, make_byte_tokenizer("plain")
    tokenizer.chat_template = tokenizer.chat_template.replace("m.content", "m.content + (m.tool_calls or '') | string")
    turn = [{"role": "assistant", "content": "", "tool_calls": [CALL]}]
    assert "get_weather" in rendered(tokenizer, turn, True, notes)
    assert notes == {}


def test_tools_that_a_text_lacks():
    other = {"name": "music"}  # without the wrapper, as some datasets have tools
    assert missing_tools([CALL, other], "get_weather and music") == ""
    assert missing_tools([CALL, other], "get_weather") == '{"name": "music"}'
    assert json.loads(missing_tools([CALL, other], "music")) == CALL["function"]
    for unknown in (None, [], [{}], [None], [{"function": None}], [{"name": 3}], "music", {"name": "music"}):
        assert missing_tools(unknown, "") == ""


def test_the_lost_part_of_a_text():
    assert lost_part("abc def", "x def") == "abc"
    assert lost_part("abc", "z") == "abc"


# ------------------------------------------------------------------------------------------------------ ends of turns


@pytest.mark.parametrize(("template", "end"), [("plain", f"{END}\n"), ("r1", END), ("qwen3", f"{END}\n"), ("glm", "")])
def test_the_end_of_a_turn(template, end):
    assert end_of_turn(make_byte_tokenizer(template), USER) == end


def test_a_template_that_writes_no_answer_gets_the_end_token():
    template = "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% endif %}{% endfor %}"
    assert end_of_turn(make_byte_tokenizer(template), USER) == END
    assert behind(template, "good")[0] == f"good{END}"


def test_a_turn_that_does_not_end_generation():
    tokenizer = make_byte_tokenizer("plain", eos="<|endoftext|>")
    end, eos = tokenizer.convert_tokens_to_ids([END, "<|endoftext|>"])
    assert unstopped_turn(tokenizer, [eos, end]) == ""
    assert "set eos_token='<|im_end|>'" in unstopped_turn(tokenizer, [eos])
    assert "writes nothing behind an answer" in unstopped_turn(make_byte_tokenizer("glm"), [end])
    tokenizer.chat_template = tokenizer.chat_template.replace(END, " //")
    assert "let the template end turns with '<|endoftext|>'" in unstopped_turn(tokenizer, [eos])
    tokenizer.chat_template = "{{ raise_exception('no') }}"  # the rows have the error
    assert unstopped_turn(tokenizer, [eos]) == ""


# ---------------------------------------------------------------------------------------------------------- arguments


def test_the_arguments_of_a_row_win_over_the_setting():
    row = {
        "prompt": USER,
        "chat_template_kwargs": {"a": 1, "b": None},
    }  # None: a key of another row in its Arrow table
    assert template_kwargs(with_template_kwargs(row, {"a": 2, "b": 3, "c": 4})) == {"a": 1, "b": 3, "c": 4}
    assert template_kwargs(row) == {"a": 1}
    assert template_kwargs({"prompt": USER, "chat_template_kwargs": '{"a": 1}', "tools": "[]"}) == {"a": 1}
    assert with_template_kwargs(row, None) is row


def test_a_key_that_only_other_rows_have_stays_undefined():
    """`enable_thinking` is `None` where Arrow fills it in, and templates take `None` for false."""
    tokenizer = make_byte_tokenizer("qwen3.5")
    row = {"chat_template_kwargs": {"enable_thinking": None}}
    assert render(tokenizer, USER, add_generation_prompt=True, **template_kwargs(row)).endswith("<think>\n")
