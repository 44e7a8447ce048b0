# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0
"""Shared by all tests: no network, one thread, and tiny models built in memory."""

import gc
import os


# Before torch is imported: two threads on two cores stall one another, and nothing may look for a hub.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
# The servers that tests start are on this machine, whatever proxy the environment has for others.
os.environ["no_proxy"] = f"127.0.0.1,{os.environ.get('no_proxy', os.environ.get('NO_PROXY', ''))}"
os.environ["NO_PROXY"] = os.environ["no_proxy"]

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from run_log import pytest_configure  # noqa: F401  # pytest calls it by its name


# How long an example takes says how busy the machine is, and nothing about what is tested.
hypothesis.settings.register_profile(
    "any machine", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("any machine")

REPOSITORY = Path(__file__).resolve().parent.parent
# Seconds after which what a test waits for will not come. A busy machine takes a minute to start a Python with torch.
HANGS = 600
QUICKSTART = REPOSITORY / "recipes" / "quickstart"
# What is slow by nature (killed runs, thousands of steps, whole quickstarts) has a short form; this asks for the long.
LONG = os.environ.get("TRL_EXT_LONG", "0") not in ("", "0")

CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}"
    "{% if not (loop.last and continue_final_message | default(false)) %}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

WORDS = (
    "the a film movie was is it good bad great dull story plot actor scene and but not very so I we liked hated loved "
    "found thought with of in to for this that had no one best worst ever seen again music user assistant question "
    "answer"
).split()


def make_tokenizer(chat: bool = False) -> Any:
    """A word-level tokenizer of about 80 entries: letters, punctuation, WORDS, and special tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ["<|pad|>", "<|endoftext|>", "<|unk|>", "<|im_start|>", "<|im_end|>"]
    spaced = [f"\u0120{word}" for word in WORDS]
    letters = [chr(code) for code in range(33, 127)] + ["\u0120", "\u010a"]
    vocabulary = list(dict.fromkeys([*special, *WORDS, *spaced, *letters]))
    tokenizer = Tokenizer(models.WordLevel({token: i for i, token in enumerate(vocabulary)}, unk_token="<|unk|>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|pad|>",
        eos_token="<|endoftext|>",
        unk_token="<|unk|>",
        additional_special_tokens=["<|im_start|>", "<|im_end|>"],
        chat_template=CHAT_TEMPLATE if chat else None,
        model_max_length=256,
    )


def make_llama2_tokenizer() -> Any:
    """
    A tokenizer of Llama 2's kind: a space (U+2581) is put before every text and taken off again when it is decoded.
    The tokens of single bytes come first.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers
    from transformers import PreTrainedTokenizerFast

    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "\u2581"]
    pieces += [chr(code) for code in range(33, 127)]
    merges = []
    for word in ("the", "film", "was", "good", "bad", "a", "I"):
        for start in ("\u2581", ""):
            parts = [*start, *word]
            while len(parts) > 1:
                merges.append((parts[0], parts[1]))
                parts[:2] = [parts[0] + parts[1]]
                pieces.append(parts[0])
    vocabulary = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = Tokenizer(models.BPE(vocabulary, list(dict.fromkeys(merges)), unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<unk>"
    )


def make_model(vocab_size: int, *, seed: int = 0, num_labels: int = 0, **changes: Any) -> Any:
    """A Llama of two layers and width 64 with sharp random weights, so that attention makes a difference."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

    settings = {
        "vocab_size": vocab_size,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "initializer_range": 0.15,
        "pad_token_id": 0,
        "bos_token_id": None,
        "eos_token_id": 1,
    }
    config = LlamaConfig(**settings | changes, **({"num_labels": num_labels} if num_labels else {}))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = (LlamaForSequenceClassification if num_labels else LlamaForCausalLM)(config)
    return model.eval()


def pytest_collection_finish() -> None:
    """What the imports made stays until the end: the garbage collection that begins every training leaves it out."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="session")
def half_precision_processor() -> Iterator[None]:
    """Wherever tests run, dtypes are chosen as on a processor with bfloat16 and float16 instructions."""
    from trl_ext import devices

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(devices, "processor_computes", lambda dtype: True)
        yield


@pytest.fixture
def slow_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    """A processor that computes fast in float32 only, as those with AVX2; and what it is warned of is logged again."""
    import logging

    from trl_ext import devices

    monkeypatch.setattr(devices, "processor_computes", lambda dtype: False)
    getattr(logging.Logger, "warning_once").cache_clear()  # transformers adds it # noqa: B009


@pytest.fixture
def tiny_tokenizer() -> Any:
    return make_tokenizer()


@pytest.fixture
def chat_tokenizer() -> Any:
    return make_tokenizer(chat=True)


@pytest.fixture
def tiny_model(tiny_tokenizer: Any) -> Any:
    return make_model(len(tiny_tokenizer))


@pytest.fixture(scope="session")
def tiny_model_dir(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A saved model with its tokenizer (which has a chat template)."""
    folder = tmp_path_factory.mktemp("models") / "tiny-llama"
    tokenizer = make_tokenizer(chat=True)
    make_model(len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def tiny_reward_dir(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A saved sequence classifier with one label, with its tokenizer."""
    folder = tmp_path_factory.mktemp("rewards") / "tiny-reward"
    tokenizer = make_tokenizer(chat=True)
    make_model(len(tokenizer), seed=1, num_labels=1).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def letter_reward(completions: list[Any], **_: Any) -> list[float]:
    """A reward that a model can learn in seconds: how often the letter "o" occurs, less how often "a" does."""
    texts = [c if isinstance(c, str) else c[-1]["content"] for c in completions]
    return [float(text.count("o") - text.count("a")) for text in texts]
