# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Reward models of many architectures: each gives what the model gives when it is called on its tokenizer's ids."""

import inspect
import json

import pytest
import torch
import transformers
from conftest import make_model, make_tokenizer
from tokenizers import processors
from transformers import AutoModelForSequenceClassification, BertModel

from trl_ext.rewards.functions import RewardError, load_rewards
from trl_ext.rewards.settings import RewardSettings


PROMPTS = ["the film", "a", "I liked this movie"]
COMPLETIONS = [" is good", " bad plot and so it was", " but not the music"]
QUESTIONS = [[{"role": "user", "content": text}] for text in PROMPTS]
ANSWERS = [[{"role": "assistant", "content": text}] for text in COMPLETIONS]
SIZE = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "initializer_range": 0.3,
    "pad_token_id": 0,
}
T5 = {"d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 1, "num_heads": 2, "decoder_start_token_id": 0}
ENCODERS = {
    "Bert": {},
    "Roberta": {"max_position_embeddings": 66, "pad_token_id": 0},
    "XLMRoberta": {"max_position_embeddings": 66},
    "DebertaV2": {"relative_attention": True, "position_biased_input": False, "pos_att_type": ["p2c", "c2p"]},
    "Electra": {"embedding_size": 32},
    "ModernBert": {"cls_token_id": 3, "sep_token_id": 4},
    "DistilBert": {"dim": 32, "hidden_dim": 64, "n_layers": 2, "n_heads": 2},
    "T5": T5 | {"eos_token_id": 4, "vocab_size": 128},
}
DECODERS = {
    "Llama": {"num_key_value_heads": 1},
    "Qwen2": {"num_key_value_heads": 1},
    "Gemma2": {"num_key_value_heads": 1, "head_dim": 16},
    "GPTNeoX": {},
    "GPT2": {"n_embd": 32, "n_layer": 2, "n_head": 2},
    "OPT": {"ffn_dim": 64, "word_embed_proj_dim": 32},
}


def encoder_tokenizer(**changes):
    """A tokenizer that adds [CLS] and [SEP], as BERT's does."""
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens({"cls_token": "<|im_start|>", "sep_token": "<|im_end|>"})
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|im_start|> $A <|im_end|>",
        pair="<|im_start|> $A <|im_end|> $B:1 <|im_end|>:1",
        special_tokens=[("<|im_start|>", tokenizer.cls_token_id), ("<|im_end|>", tokenizer.sep_token_id)],
    )
    tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    for name, value in changes.items():
        setattr(tokenizer, name, value)
    return tokenizer


def build(family, tokenizer, labels=1, **changes):
    config_class = getattr(transformers, f"{family}Config")
    own = (ENCODERS | DECODERS)[family]
    settings = SIZE | {"vocab_size": len(tokenizer), "num_labels": labels} | own | changes
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = getattr(transformers, f"{family}ForSequenceClassification")(config_class(**settings))
    return model.eval()


def logits_of(model, tokenizer, *texts, special=True, label=0):
    """The model called by itself on what its tokenizer makes of each text (or pair)."""
    found = []
    for text in zip(*texts, strict=True):
        inputs = tokenizer(*text, add_special_tokens=special, return_tensors="pt")
        if not special or "token_type_ids" not in inspect.signature(model.forward).parameters:
            inputs.pop("token_type_ids", None)
        with torch.no_grad():
            found.append(float(model(**inputs).logits[0, label]))
    return found


def joined():
    return [prompt + completion for prompt, completion in zip(PROMPTS, COMPLETIONS, strict=True)]


@pytest.mark.parametrize("family", ENCODERS)
def test_encoders_get_the_special_tokens_of_their_tokenizer(family):
    tokenizer = encoder_tokenizer()
    model = build(family, tokenizer)
    [found] = load_rewards(model, tokenizer)
    expected = logits_of(model, tokenizer, joined())
    assert found(PROMPTS, COMPLETIONS) == pytest.approx(expected, abs=1e-4)
    assert expected != pytest.approx(logits_of(model, tokenizer, joined(), special=family == "T5"), abs=1e-4) or (
        family == "T5"  # it cannot be called without its last token
    )


@pytest.mark.parametrize("family", ["Bert", "DebertaV2", "XLMRoberta"])
def test_pairs_and_questions_with_answers(family):
    """`reward_pairs` reads text as a pair; messages without a chat template are read as one in any case."""
    tokenizer = encoder_tokenizer()
    model = build(family, tokenizer)
    pairs = logits_of(model, tokenizer, PROMPTS, COMPLETIONS)
    [found] = load_rewards(model, tokenizer, settings=RewardSettings(reward_pairs=True))
    assert found(PROMPTS, COMPLETIONS) == pytest.approx(pairs, abs=1e-4)
    assert load_rewards(model, tokenizer)[0](QUESTIONS, ANSWERS) == pytest.approx(pairs, abs=1e-4)
    with pytest.raises(RewardError, match=r"several messages.*reads a question and its answer"):
        found([QUESTIONS[0] * 2], ANSWERS[:1])


@pytest.mark.parametrize("family", DECODERS)
def test_models_that_read_in_one_direction_get_no_special_tokens(family):
    """As in TRL's GRPO, also where the tokenizer would add some."""
    tokenizer = encoder_tokenizer()
    model = build(family, tokenizer)
    [found] = load_rewards(model, tokenizer)
    expected = logits_of(model, tokenizer, joined(), special=False)
    assert found(PROMPTS, COMPLETIONS) == pytest.approx(expected, abs=1e-4)


def test_roberta_has_two_positions_less_than_it_says():
    """`max_position_embeddings` of 10 means 8 tokens: [CLS], the last 6 of the text, [SEP]."""
    tokenizer = encoder_tokenizer(pad_token_id=1)
    model = build("Roberta", tokenizer, max_position_embeddings=10, pad_token_id=1)
    [found] = load_rewards(model, tokenizer)
    assert found.func.max_length == 8
    expected = logits_of(model, tokenizer, [" very" * 6])
    assert found(["the film"], [" was good and" + " very" * 9]) == pytest.approx(expected, abs=1e-4)


def test_a_pair_that_is_too_long_loses_the_beginning_of_the_prompt():
    tokenizer = encoder_tokenizer(model_max_length=8)
    model = build("Bert", tokenizer)
    [found] = load_rewards(model, tokenizer, settings=RewardSettings(reward_pairs=True))
    expected = logits_of(model, tokenizer, [" film"], [" is very very good"])
    assert found(["the the the film"], [" is very very good"]) == pytest.approx(expected, abs=1e-4)
    assert tokenizer.truncation_side == "right"  # as it was
    assert len(found(["the film"], [" very" * 20])) == 1


def test_pairs_need_a_tokenizer_that_has_a_form_for_them(tiny_tokenizer):
    with pytest.raises(ValueError, match=r"`reward_pairs` is set, but the reward model.*no encoder whose tokenizer"):
        load_rewards(
            make_model(len(tiny_tokenizer), num_labels=1), tiny_tokenizer, settings=RewardSettings(reward_pairs=True)
        )


def test_the_precision_of_a_trainer_around_it_does_not_matter(tiny_tokenizer):
    """`evaluate` of VAS scores continuations where the language model computes under autocast."""
    [reward] = load_rewards(make_model(len(tiny_tokenizer), num_labels=1), [tiny_tokenizer])
    alone = reward(PROMPTS, COMPLETIONS)
    with torch.autocast("cpu", torch.bfloat16):
        assert reward(PROMPTS, COMPLETIONS) == alone


def test_equal_texts_are_read_once_and_have_equal_rewards(tiny_tokenizer):
    """Beside longer texts, padding may change a logit's last bits: equal completions would not tie."""
    model = make_model(len(tiny_tokenizer), num_labels=1)
    rows = []
    model.register_forward_pre_hook(lambda _, args, kwargs: rows.append(len(kwargs["input_ids"])), with_kwargs=True)
    [found] = load_rewards(model, tiny_tokenizer, settings=RewardSettings(reward_batch_size=2))
    values = found(["a"] * 5, [" good", " bad plot and so it was", " good", " very", " good"])
    assert rows == [2, 1] and values[0] == values[2] == values[4] and len(set(values)) == 3


# ------------------------------------------------------------------------------------------------------------- labels


@pytest.mark.parametrize(("head", "label"), [("GOOD", 1), ("1", 1), ("0", 0), (1, 1)])
def test_one_of_several_labels_is_the_reward(head, label, tmp_path):
    tokenizer = encoder_tokenizer()
    model = build("Bert", tokenizer, labels=2, id2label={0: "BAD", 1: "GOOD"}, label2id={"BAD": 0, "GOOD": 1})
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    settings = RewardSettings(reward_head=head)
    [found] = load_rewards(str(tmp_path), settings=settings)
    expected = logits_of(model, tokenizer, joined(), label=label)
    assert found(PROMPTS, COMPLETIONS) == pytest.approx(expected, abs=1e-4)


def test_labels_that_are_not_named_or_do_not_exist(tmp_path):
    """Also by name: transformers has its own error for a head of another size."""
    tokenizer = encoder_tokenizer()
    build("Bert", tokenizer, labels=2).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"has 2 labels.*`reward_head` to one of them, 0 \(LABEL_0\), 1 \(LABEL_1\)"):
        load_rewards(str(tmp_path))
    for head in ("2", "GOOD"):
        with pytest.raises(
            ValueError, match=rf"has no label '{head}' \(`reward_head`\); its labels are 0 \(LABEL_0\)"
        ):
            load_rewards(str(tmp_path), settings=RewardSettings(reward_head=[head]))
    with pytest.raises(ValueError, match=r"`reward_head` has 2 entries for 1 reward functions \(\w+\)"):
        load_rewards(str(tmp_path), settings=RewardSettings(reward_head=["1", "0"]))


def test_a_config_that_does_not_say_how_many_labels_there_are(tmp_path):
    """transformers has two by default; the weights have one."""
    tokenizer = encoder_tokenizer()
    model = build("Bert", tokenizer)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for name in ("id2label", "label2id", "num_labels"):
        config.pop(name, None)
    (tmp_path / "config.json").write_text(json.dumps(config))
    [found] = load_rewards(str(tmp_path))
    assert found(PROMPTS, COMPLETIONS) == pytest.approx(logits_of(model, tokenizer, joined()), abs=1e-4)


def test_an_encoder_without_a_score_head_is_refused(tmp_path):
    """A new head would return random scores."""
    tokenizer = encoder_tokenizer()
    BertModel(build("Bert", tokenizer).config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"BertModel\), which has no score head"):
        load_rewards(str(tmp_path))


# ------------------------------------------------------------------------------------------------------------ loading


def test_the_dtype_is_that_of_the_checkpoint(tiny_reward_dir, tmp_path):
    model = AutoModelForSequenceClassification.from_pretrained(tiny_reward_dir, dtype=torch.bfloat16)
    model.save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    assert load_rewards(tiny_reward_dir)[0].func.model.dtype == torch.float32
    [found] = load_rewards(str(tmp_path))
    assert found.func.model.dtype == torch.bfloat16
    assert all(isinstance(value, float) for value in found(PROMPTS, COMPLETIONS))
    for dtype in ("float32", torch.float32):
        settings = RewardSettings(reward_model_init_kwargs={"dtype": dtype, "device": "cpu"})
        assert load_rewards(str(tmp_path), settings=settings)[0].func.model.dtype == torch.float32


@pytest.mark.parametrize("bits", [4, 8])
def test_reward_models_in_4_and_8_bits_keep_their_score_head(bits, tiny_reward_dir):
    pytest.importorskip("bitsandbytes")
    settings = RewardSettings(reward_model_init_kwargs={f"load_in_{bits}bit": True})
    [found] = load_rewards(tiny_reward_dir, settings=settings)
    model = found.func.model
    assert "bit" in type(model.model.layers[0].mlp.up_proj).__name__
    assert type(model.score) is torch.nn.Linear
    exact = load_rewards(tiny_reward_dir)[0](PROMPTS, COMPLETIONS)
    assert found(PROMPTS, COMPLETIONS) == pytest.approx(exact, abs=0.5 * max(map(abs, exact)))


def test_a_model_without_a_name_needs_its_tokenizer(tiny_tokenizer):
    model = make_model(len(tiny_tokenizer), num_labels=1)
    with pytest.raises(ValueError, match=r"has no name.*`reward_processing_classes`"):
        load_rewards(model)


@pytest.mark.parametrize(
    "changes",
    [
        {"reward_head": ["1"]},
        {"reward_pairs": True},
        {"reward_model_init_kwargs": {"dtype": "float32"}},
        {"reward_server_kwargs": {"timeout": 5}},
    ],
)
def test_a_setting_that_no_reward_uses_is_an_error(changes, tiny_tokenizer):
    [name] = changes
    with pytest.raises(ValueError, match=f"`{name}` has no effect: no reward is a"):
        load_rewards([len], settings=RewardSettings(**changes))
    with pytest.raises(ValueError, match=f"`{name}` has no effect: no reward is a"):
        load_rewards([], settings=RewardSettings(**changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"reward_batch_size": -1}, "`reward_batch_size` must be at least 0"),
        ({"reward_model_init_kwargs": "{"}, "`reward_model_init_kwargs` must be a mapping in JSON"),
        ({"reward_model_init_kwargs": [1]}, "`reward_model_init_kwargs` must be a mapping, got"),
        ({"reward_model_init_kwargs": {"load_in_4bit": True, "load_in_8bit": True}}, "set one of them"),
        ({"reward_head": [1.5]}, "`reward_head` must have names or numbers of labels"),
        (
            {"reward_server_kwargs": {"retries": 3}},
            r"`reward_server_kwargs` has no \['retries'\], only model",
        ),
    ],
)
def test_settings_that_cannot_be_used(changes, message):
    with pytest.raises(ValueError, match=message):
        RewardSettings(**changes).check_reward_settings()
