# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""What a saved value model says about itself: its card, and the code with which `generate` of transformers uses it."""

import os
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData

from trl_ext.cards import Card, code, link, on_hub, versions_list

from .config import ValueConfig


TAG = "custom_generate"  # by which the Hub lists repositories whose code `generate` can use

# Stored with each value model, so it uses a public name only, and says what is missing.
_GENERATE = '''\
"""
Guided decoding by the value model of this repository:

    model.generate(**inputs, custom_generate=THIS, trust_remote_code=True, value_model=THIS, beta=2.0)

The arguments are those of `trl_ext.guided_generate` and of `generate`.
"""


def generate(model, **kwargs):
    try:
        from trl_ext import guided_generate
    except ImportError as error:
        raise ImportError("Guided decoding by a value model needs trl-ext: pip install trl-ext") from error
    return guided_generate(model, **kwargs)
'''


def summary_of(heads: list[str], language_model: str) -> str:
    """What a value model is, as a paragraph of a card."""
    return (
        f"A value model that guides {language_model} while it generates: it predicts the reward of a text from its "
        f"tokens so far ({', '.join(heads)}). It writes no text itself."
    )


def quick_start(heads: list[str], model: str, place: str, *, shared: bool, value_prompt: bool = False) -> str:
    """
    Code that guides a language model.

    Args:
        heads (`list[str]`): Names of the heads.
        model (`str`): The language model, as a Python string with its quotes.
        place (`str`): Where the value model is, likewise.
        shared (`bool`): Whether the value model is put on the language model's weights.
        value_prompt (`bool`, *optional*, defaults to `False`): Whether it reads a prompt of its own.
    """
    beta: Any = 2.0 if len(heads) == 1 else dict.fromkeys(heads, 2.0)
    given, own, stored = 'attention_mask=inputs["attention_mask"]', "", ""
    if value_prompt:
        given += ", value_prompts=own_prompts"
        stored = "    value_prompts=own_prompts,\n"
        own = """
# What it reads in place of the prompt, as the column `value_prompt` in training:
own_prompts = tokenizer(["In favour of the film. The film was"])["input_ids"]"""
    return f"""
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl_ext import ValueAugmentedLogitsProcessor, ValueModel

tokenizer = AutoTokenizer.from_pretrained({model})
model = AutoModelForCausalLM.from_pretrained({model})
value_model = ValueModel.from_pretrained({place}{", backbone=model" if shared else ""})
inputs = tokenizer("The film was", return_tensors="pt"){own}
guide = ValueAugmentedLogitsProcessor(value_model, beta={beta!r}, {given})
output = model.generate(**inputs, logits_processor=[guide], do_sample=True, max_new_tokens=64)
print(tokenizer.decode(output[0]))

# The same by the code that is stored with the value model:
output = model.generate(
    **inputs,
    custom_generate={place},
    trust_remote_code=True,
    value_model=value_model,
    beta={beta!r},
{stored}    do_sample=True,
    max_new_tokens=64,
)
"""


def value_model_card(config: ValueConfig, place: str, *, shared: bool) -> str:
    """
    The text of the card of a value model that was saved by itself. Training writes one that knows more.

    Args:
        config ([`ValueConfig`]): Its config.
        place (`str`): The directory or Hub id that the code names.
        shared (`bool`): Whether it is put on the language model's weights.
    """
    heads = list(config.heads or ())
    name = config.backbone_name if shared and on_hub(config.backbone_name) else ""
    base = [config.backbone_name] if on_hub(config.backbone_name) else None
    data = ModelCardData(base_model=base, library_name="trl-ext", tags=[TAG, "trl-ext", "vas"])
    who = link(name) if name else "a language model of the same vocabulary"
    card = Card("A value model", data, [summary_of(heads, who)])
    quoted = repr(name or "LANGUAGE_MODEL")
    card.add(
        "Quick start", code(quick_start(heads, quoted, repr(place), shared=shared, value_prompt=config.value_prompt))
    )
    card.add("Framework versions", versions_list())
    return card.text()


def write_use(directory: str | os.PathLike[str], config: ValueConfig, *, shared: bool) -> None:
    """
    Write `custom_generate/generate.py` beside a saved value model, and a `README.md` if there is none.

    Args:
        directory (`str` or `os.PathLike`): The directory of the value model.
        config, shared: As for [`value_model_card`].
    """
    folder = Path(directory)
    (folder / TAG).mkdir(parents=True, exist_ok=True)
    (folder / TAG / "generate.py").write_text(_GENERATE, encoding="utf-8")
    readme = folder / "README.md"
    if not readme.exists():
        readme.write_text(value_model_card(config, folder.name, shared=shared), encoding="utf-8")
