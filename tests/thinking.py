# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Small chat templates that treat reasoning as those of well-known models do, and a tokenizer of bytes for them."""

from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast


END = "<|im_end|>"
_USER = "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
_SPLIT = (
    "{% set c = m.content %}{% set r = '' %}{% if '</think>' in c %}"
    "{% set r = c.split('</think>')[0].split('<think>')[-1].strip('\n') %}"
    "{% set c = c.split('</think>')[-1].lstrip('\n') %}{% endif %}"
)


def _template(assistant: str, opening: str) -> str:
    return (
        f"{{% for m in messages %}}{{% if m.role == 'assistant' %}}{assistant}{{% else %}}{_USER}{{% endif %}}"
        f"{{% endfor %}}{{% if add_generation_prompt %}}{{{{ '<|im_start|>assistant\n' }}}}{opening}{{% endif %}}"
    )


_THOUGHT = "'<|im_start|>assistant\n<think>\n' + r + '\n</think>\n\n' + c + '<|im_end|>\n'"
_OFF = "{% if enable_thinking is defined and not enable_thinking %}{{ '<think>\n\n</think>\n\n' }}"

TEMPLATES = {
    # Answers as they are.
    "plain": _template("{{ '<|im_start|>assistant\n' + m.content + '<|im_end|>\n' }}", ""),
    # DeepSeek-R1: the prompt opens a thought, an answer is rendered without its reasoning.
    "r1": _template(
        "{{ '<|im_start|>assistant\n' + m.content.split('</think>')[-1] + '<|im_end|>' }}", "{{ '<think>\n' }}"
    ),
    # Qwen3: an answer without reasoning gets an empty thought; reasoning is rendered with white space of its own.
    "qwen3": _template(_SPLIT + "{{ " + _THOUGHT + " }}", _OFF + "{% endif %}"),
    # Qwen3.5 and later: the prompt opens the thought.
    "qwen3.5": _template(_SPLIT + "{{ " + _THOUGHT + " }}", _OFF + "{% else %}{{ '<think>\n' }}{% endif %}"),
    # GLM: thoughts without white space, and nothing behind an answer.
    "glm": _template(
        _SPLIT + "{{ '<|im_start|>assistant\n<think>' + r + '</think>\n' + c.strip() }}",
        "{% if enable_thinking is defined and not enable_thinking %}{{ '<think></think>' }}{% endif %}",
    ),
    # Nemotron: the prompt opens the thought with a line break, and the thought of an answer without one has none.
    "nemotron": _template(
        "{% set c = m.content %}{% if '<think>' not in c and '</think>' not in c %}{% set c = '<think></think>' + c %}"
        "{% endif %}{{ '<|im_start|>assistant\n' + c.strip() + '<|im_end|>\n' }}",
        "{{ '<think>\n' }}",
    ),
}


def make_byte_tokenizer(template: str | None = None, *, eos: str = END) -> Any:
    """A byte-level tokenizer that joins a space with an "f" behind it, and two line breaks."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*alphabet, "\u0120f", "\u010a\u010a"])}
    inner = Tokenizer(models.BPE(vocabulary, merges=[("\u0120", "f"), ("\u010a", "\u010a")]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens(["<|pad|>", "<|endoftext|>", "<|im_start|>", END])
    inner.add_tokens(["<think>", "</think>"])
    template = TEMPLATES.get(str(template), template)
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<|pad|>", eos_token=eos, chat_template=template)
