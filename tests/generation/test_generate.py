# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
Completions are samples of the model's distribution, with padding, caches, several completions per prompt and adapters.

The oracles are transformers' logits warpers, the model's own probabilities, and `greedy_loop`, which decodes one
sequence at a time without a cache.
"""

import itertools
import math
from pathlib import Path

import pytest
import torch
from conftest import make_model
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LogitsProcessorList,
    MambaConfig,
    MambaForCausalLM,
    MinPLogitsWarper,
    MistralConfig,
    MistralForCausalLM,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from trl_ext.decoding.kv_cache import PreallocatedCacheLayer, prompt_cache
from trl_ext.decoding.token_sampling import next_token_probabilities, sample_columns
from trl_ext.generation.generate import generate
from trl_ext.generation_settings import GenerationSettings
from trl_ext.models.properties import cache_name
from trl_ext.progress import Progress


MOST_LIKELY = {"num_generations": 1, "top_k": 1}  # our own sampling and cache, with only one possible result
PROMPTS = [[5, 6, 7], [9], [11, 12, 13, 14, 15, 16, 17], [20, 21]]


def greedy_loop(model, prompt, length, eos=1):
    """Greedy decoding of one sequence, without padding, cache or batch."""
    ids = list(prompt)
    while len(ids) - len(prompt) < length:
        with torch.no_grad():
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        if ids[-1] == eos:
            break
    return ids[len(prompt) :]


def assert_greedy(model, tokenizer, prompts=PROMPTS, length=8, expected=None, **settings):
    """`generate` with these settings returns what `greedy_loop` returns, by default for the same model."""
    settings = GenerationSettings(max_completion_length=length, **(settings or MOST_LIKELY))
    found = generate(model, tokenizer, prompts, settings)
    expected = [greedy_loop(model, prompt, length) for prompt in prompts] if expected is None else expected
    assert [[completion.ids for completion in group] for group in found] == [[ids] for ids in expected]


# -------------------------------------------------------------------------------------------------- the distribution


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"temperature": 0.7},
        {"top_k": 5},
        {"top_p": 0.8},
        {"min_p": 0.3},
        {"temperature": 1.5, "top_k": 12, "top_p": 0.7, "min_p": 0.2},
        {"top_k": 1000},
    ],
    ids=str,
)
def test_distribution_is_that_of_transformers(settings):
    torch.manual_seed(0)
    logits = 3 * torch.randn(6, 40)
    settings = GenerationSettings(**settings)
    weights, tokens = next_token_probabilities(logits.clone(), settings)
    if tokens is not None:
        weights = torch.zeros_like(logits).scatter(1, tokens, weights)

    warpers = LogitsProcessorList([TemperatureLogitsWarper(settings.temperature)])
    if settings.top_k:
        warpers.append(TopKLogitsWarper(settings.top_k))
    if settings.top_p < 1:
        warpers.append(TopPLogitsWarper(settings.top_p))
    if settings.min_p:
        warpers.append(MinPLogitsWarper(settings.min_p))
    expected = warpers(torch.zeros(6, 1, dtype=torch.long), logits.clone()).softmax(-1)

    assert torch.allclose(weights / weights.sum(-1, keepdim=True), expected, atol=1e-6)


def test_sampled_columns_follow_the_weights():
    torch.manual_seed(0)
    weights = torch.tensor([0.0, 3.0, 0.0, 1.0, 4.0, 0.0])
    sampled = sample_columns(weights.expand(80_000, -1))
    assert sampled.shape == (80_000, 1)
    shares = sampled.squeeze(1).bincount(minlength=6) / 80_000
    assert torch.allclose(shares, weights / 8, atol=0.008)  # more than four standard deviations
    assert (shares > 0).tolist() == (weights > 0).tolist()


def test_the_largest_random_number_selects_the_last_weight(monkeypatch):
    monkeypatch.setattr(torch, "rand_like", torch.ones_like)  # the largest number below 1 may be rounded to 1
    assert sample_columns(torch.tensor([[0.3, 0.7, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0]])).tolist() == [[1], [0]]
    monkeypatch.setattr(torch, "rand_like", torch.zeros_like)
    assert sample_columns(torch.tensor([[0.0, 0.3, 0.7, 0.0]])).tolist() == [[1]]


def test_samples_follow_the_models_distribution(tiny_model, tiny_tokenizer):
    """First and second tokens of 6000 completions against the model's probabilities."""
    torch.manual_seed(0)
    n, prompt = 6000, [5, 6, 7]
    settings = GenerationSettings(num_generations=n, max_completion_length=2, temperature=0.5)
    sampled = generate(tiny_model, tiny_tokenizer, [[8], prompt], settings, batch_size=2 * n)[1]
    with torch.no_grad():
        first = (tiny_model(torch.tensor([prompt])).logits[0, -1] / 0.5).softmax(-1)
    counts = torch.tensor([c.ids[0] for c in sampled]).bincount(minlength=len(first))
    assert_like(counts, first)
    most_likely = int(counts.argmax())
    followers = torch.tensor([c.ids[1] for c in sampled if c.ids[0] == most_likely])
    with torch.no_grad():
        second = (tiny_model(torch.tensor([[*prompt, most_likely]])).logits[0, -1] / 0.5).softmax(-1)
    assert_like(followers.bincount(minlength=len(second)), second)


def assert_like(counts, probabilities):
    """Chi-squared test over the cells with an expected count of at least 5, and one cell for all others."""
    expected = probabilities * counts.sum()
    big = expected >= 5
    observed = torch.cat([counts[big].float(), counts[~big].sum()[None].float()])
    wanted = torch.cat([expected[big], expected[~big].sum()[None]])
    wanted = wanted.clamp(min=1e-9)
    freedom = len(wanted) - 1
    assert freedom >= 5, "the distribution is too narrow for the test"
    assert ((observed - wanted) ** 2 / wanted).sum() < freedom + 5 * math.sqrt(2 * freedom)


# ---------------------------------------------------------------------------------- padding, cache, batches, models


@pytest.mark.parametrize("settings", [MOST_LIKELY, {"num_generations": 1, "temperature": 0}], ids=["cache", "plain"])
def test_batch_of_unequal_prompts_equals_one_by_one(tiny_model, tiny_tokenizer, settings):
    """70 tokens exceed the preallocated cache, which grows during generation."""
    assert PreallocatedCacheLayer.spare < 70
    assert_greedy(tiny_model, tiny_tokenizer, length=70, **settings)


def tiny(name):
    torch.manual_seed(0)
    small = {"vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 2, "initializer_range": 0.3}
    small |= {"pad_token_id": 0, "bos_token_id": None, "eos_token_id": 1}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 48}
    models = {
        "absolute positions": lambda: GPT2LMHeadModel(GPT2Config(**small, num_attention_heads=4)),
        "no positions": lambda: BloomForCausalLM(BloomConfig(**small, n_head=4)),
        "sliding window": lambda: MistralForCausalLM(MistralConfig(**small, **heads, sliding_window=4)),
        "recurrent": lambda: MambaForCausalLM(MambaConfig(**small)),
    }
    return models[name]().eval()


@pytest.mark.parametrize(
    ("name", "cached"),
    [("absolute positions", True), ("no positions", True), ("sliding window", False), ("recurrent", False)],
)
def test_architectures(tiny_tokenizer, name, cached):
    """Models with a cache of another kind use that of transformers. All give the result of `greedy_loop`."""
    model = tiny(name)
    ids = torch.tensor([[5, 6, 7], [8, 9, 10]])
    assert (prompt_cache(model, ids, torch.ones_like(ids), 2) is not None) == cached
    prompts = [[5, 6, 7, 8, 9, 10, 11]] if name == "recurrent" else PROMPTS  # recurrent models ignore masks
    assert_greedy(model, tiny_tokenizer, prompts, length=12)


def test_the_adapter_is_used(tiny_model, tiny_tokenizer):
    from peft import LoraConfig, get_peft_model

    before = [greedy_loop(tiny_model, prompt, 8) for prompt in PROMPTS]
    model = get_peft_model(tiny_model, LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False))
    assert [greedy_loop(model.eval(), prompt, 8) for prompt in PROMPTS] != before
    assert_greedy(model, tiny_tokenizer)


@pytest.mark.parametrize("kind", ["prompt tuning", "p-tuning"])
def test_virtual_tokens_come_once_and_right_before_the_prompt(kind, tiny_model, tiny_tokenizer):
    """Also with peft that knows the KV cache by its name of before transformers 5.24, and beside longer prompts."""
    from peft import PromptEncoderConfig, PromptTuningConfig, get_peft_model

    config = {"prompt tuning": PromptTuningConfig, "p-tuning": PromptEncoderConfig}[kind]
    model = get_peft_model(tiny_model, config(task_type="CAUSAL_LM", num_virtual_tokens=3)).eval()
    assert greedy_loop(model, [5, 6, 7], 6) != greedy_loop(model.get_base_model(), [5, 6, 7], 6)
    assert_greedy(model, tiny_tokenizer, [[5, 6, 7], [8, 9, 10, 11, 12], [13, 14, 15]], length=6)


@pytest.mark.skipif(cache_name(make_model(8)) != "cache", reason="this transformers generates with prefix tuning")
def test_prefix_tuning_is_refused_where_it_would_generate_other_tokens(tiny_model, tiny_tokenizer):
    from peft import PrefixTuningConfig, get_peft_model

    model = get_peft_model(tiny_model, PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)).eval()
    with pytest.raises(ValueError, match=r"prefix tuning since transformers 5\.24"):
        generate(model, tiny_tokenizer, [[5, 6, 7]], GenerationSettings(num_generations=1))


def test_training_mode_checkpointing_and_dropout_are_off_and_restored(tiny_tokenizer):
    model = make_model(len(tiny_tokenizer), attention_dropout=0.5)
    expected = [greedy_loop(model, prompt, 8) for prompt in PROMPTS]
    model.gradient_checkpointing_enable()
    model.config.use_cache = False
    model.train()
    model.lm_head.eval()
    modes = [module.training for module in model.modules()]
    assert_greedy(model, tiny_tokenizer, expected=expected)
    assert [module.training for module in model.modules()] == modes
    assert model.is_gradient_checkpointing
    assert all(p.requires_grad for p in model.parameters())


def test_the_mode_is_restored_after_an_error(tiny_model, tiny_tokenizer, monkeypatch):
    monkeypatch.setattr(tiny_model, "forward", lambda **_: 1 / 0)
    tiny_model.train()
    with pytest.raises(ZeroDivisionError):
        generate(tiny_model, tiny_tokenizer, PROMPTS, GenerationSettings())
    assert tiny_model.training


def test_autocast(tiny_model, tiny_tokenizer):
    """A trainer with bf16=True generates under autocast; queries and cached keys must have the same dtype."""
    settings = GenerationSettings(num_generations=2, max_completion_length=8)
    with torch.autocast("cpu", torch.bfloat16):
        found = generate(tiny_model, tiny_tokenizer, PROMPTS, settings)
    assert all(len(c.ids) == 8 or c.ended for c in itertools.chain.from_iterable(found))


def test_an_adapter_whose_forward_accelerate_wraps(tiny_tokenizer):
    """With bf16=True autocast is around the adapter's forward, which PEFT's `generate` does not call."""
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(make_model(len(tiny_tokenizer)), LoraConfig(target_modules=["q_proj", "v_proj"])).eval()
    settings = GenerationSettings(num_generations=2, max_completion_length=3, top_k=1)
    expected = [[c.ids for c in row] for row in generate(model, tiny_tokenizer, PROMPTS, settings)]
    model.forward = torch.autocast("cpu", torch.bfloat16)(model.forward)
    assert [[c.ids for c in row] for row in generate(model, tiny_tokenizer, PROMPTS, settings)] == expected


@pytest.mark.parametrize("batch_size", [1, 3, 5, 8, 100])
def test_number_and_order_of_completions_for_any_batch_size(tiny_model, tiny_tokenizer, batch_size, monkeypatch):
    steps = []
    monkeypatch.setattr(Progress, "advance", lambda self, prompts: steps.append(prompts))
    settings = GenerationSettings(num_generations=4, max_completion_length=3, top_k=1)
    found = generate(tiny_model, tiny_tokenizer, PROMPTS, settings, batch_size=batch_size)
    assert [[c.ids for c in row] for row in found] == [[greedy_loop(tiny_model, p, 3)] * 4 for p in PROMPTS]
    assert sum(steps) == len(PROMPTS)
    assert len(steps) == math.ceil(len(PROMPTS) / max(1, batch_size // 4)) * math.ceil(4 / batch_size)


def test_prompts_are_sorted_by_length(tiny_model, tiny_tokenizer, monkeypatch):
    widths, real = [], tiny_model.generate
    monkeypatch.setattr(
        tiny_model, "generate", lambda **kwargs: widths.append(kwargs["input_ids"].shape[1]) or real(**kwargs)
    )
    settings = GenerationSettings(num_generations=2, max_completion_length=2)
    generate(tiny_model, tiny_tokenizer, [[5] * n for n in (2, 9, 2, 5, 9, 5)], settings, batch_size=4)
    assert widths == [9, 5, 2]


def test_the_seed_determines_the_completions(tiny_model, tiny_tokenizer):
    settings = GenerationSettings(num_generations=3, max_completion_length=6)

    def ids(seed):
        torch.manual_seed(seed)
        return [[c.ids for c in row] for row in generate(tiny_model, tiny_tokenizer, PROMPTS, settings)]

    assert ids(1) == ids(1)
    assert ids(1) != ids(2)
    assert all(len({tuple(i) for i in row}) == 3 for row in ids(1)), "the completions of a prompt must differ"


def test_no_prompts(tiny_model, tiny_tokenizer):
    assert generate(tiny_model, tiny_tokenizer, [], GenerationSettings()) == []


# -------------------------------------------------------------------------------------------------- ends of sequence


def test_completions_end_at_the_first_eos(tiny_model, tiny_tokenizer):
    torch.manual_seed(0)
    tiny_model.generation_config.eos_token_id = [1, 6, 7, 8, 9, 10, 11, 12]  # many, so that some completions end early
    settings = GenerationSettings(num_generations=40, max_completion_length=6)
    found = [c for row in generate(tiny_model, tiny_tokenizer, PROMPTS, settings, batch_size=160) for c in row]
    ends = set(tiny_model.generation_config.eos_token_id)
    assert {c.ended for c in found} == {True, False}
    for c in found:
        assert not ends & set(c.ids[:-1])
        assert c.ended == (c.ids[-1] in ends)
        assert c.ended or len(c.ids) == 6
        assert c.text == tiny_tokenizer.decode(c.ids, skip_special_tokens=True)
        assert "<|" not in c.text


def test_a_completion_may_be_empty(tiny_model, tiny_tokenizer):
    with torch.no_grad():
        tiny_model.model.norm.weight.zero_()  # all logits are equal, so argmax is token 0
    tiny_model.generation_config.eos_token_id = 0
    found = generate(tiny_model, tiny_tokenizer, [[5, 6]], GenerationSettings(num_generations=1, temperature=0))
    assert (found[0][0].text, found[0][0].ids, found[0][0].ended) == ("", [0], True)


def test_stop_strings_end_a_completion(tiny_model, tiny_tokenizer):
    torch.manual_seed(0)
    settings = GenerationSettings(
        num_generations=60, max_completion_length=12, generation_kwargs={"stop_strings": ["e", "o", "a"]}
    )
    found = generate(tiny_model, tiny_tokenizer, [[5, 6], [7]], settings, batch_size=120)
    completions = [c for row in found for c in row]
    for c in completions:
        stopped = any(letter in c.text for letter in "eoa")
        assert c.ended == (stopped or c.ids[-1] == 1)
        assert c.ended or len(c.ids) == 12
        text = tiny_tokenizer.decode(c.ids[:-1], skip_special_tokens=True)
        assert not any(letter in text for letter in "eoa"), "it continues after the stop string"
    assert sum(c.ended and len(c.ids) < 12 for c in completions) > 20


# ----------------------------------------------------------------------------------------------- settings and models


def test_defaults_of_the_models_generation_config_have_no_effect(tiny_model, tiny_tokenizer):
    """Chat models have a top-k, a temperature and a repetition penalty in theirs; only our settings count."""
    for name, value in {"do_sample": True, "top_k": 1, "top_p": 0.01, "repetition_penalty": 5.0}.items():
        setattr(tiny_model.generation_config, name, value)
    for kwargs in (None, {"min_new_tokens": 1}):
        torch.manual_seed(0)
        settings = GenerationSettings(num_generations=30, max_completion_length=2, generation_kwargs=kwargs)
        found = generate(tiny_model, tiny_tokenizer, [[5, 6]], settings)
        assert len({tuple(c.ids) for c in found[0]}) > 10
    settings = GenerationSettings(num_generations=1, temperature=0, max_completion_length=20)
    assert generate(tiny_model, tiny_tokenizer, [[5, 6]], settings)[0][0].ids == greedy_loop(tiny_model, [5, 6], 20)


@pytest.mark.parametrize(
    "brought",
    [
        {"no_repeat_ngram_size": 1},
        {"suppress_tokens": list(range(5, 60))},
        {"forced_eos_token_id": 1},
        {"guidance_scale": 2.0},
        {"num_beams": 2, "min_new_tokens": 9, "max_length": 5},
        {"cache_implementation": "static", "return_dict_in_generate": True, "stop_strings": ["a"]},
        {"prompt_lookup_num_tokens": 3},
    ],
    ids=str,
)
def test_no_setting_of_the_model_has_an_effect(tiny_model, tiny_tokenizer, brought):
    """With our sampling, that of transformers, greedy and with beams: the completions are those of the bare model."""
    ways = [
        {"num_generations": 2},
        {"num_generations": 2, "generation_kwargs": {"typical_p": 1.0}},
        MOST_LIKELY | {"temperature": 0},
        {"num_generations": 2, "num_beams": 2},
    ]
    settings = [GenerationSettings(max_completion_length=8, **way) for way in ways]

    def generated():
        torch.manual_seed(0)
        return [generate(tiny_model, tiny_tokenizer, [[5, 6, 7, 5, 6]], each) for each in settings]

    expected = generated()
    for name, value in brought.items():
        setattr(tiny_model.generation_config, name, value)
    assert generated() == expected


def test_the_repetition_penalty_covers_prompt_and_completion(tiny_model, tiny_tokenizer):
    settings = GenerationSettings(max_completion_length=30, repetition_penalty=1e6, **MOST_LIKELY)
    ids = generate(tiny_model, tiny_tokenizer, [[5, 6, 7], [8]], settings)[0][0].ids
    assert len(set(ids)) == len(ids)
    assert not {5, 6, 7} & set(ids)
    assert len(set(greedy_loop(tiny_model, [5, 6, 7], 30))) < 30, "the model repeats tokens without the penalty"


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 0.0},
        {"top_k": 1},
        {"top_k": 1, "num_generations": 3},
        {"num_beams": 2},
        {"generation_kwargs": {"do_sample": False}},
    ],
    ids=str,
)
def test_the_repetition_penalty_is_about_the_text_without_its_padding(tiny_model, tiny_tokenizer, settings):
    """Otherwise a row that is padded would not end: mostly the padding is the end of sequence."""
    given = {"num_generations": 1, "max_completion_length": 6, "repetition_penalty": 1e6}
    settings = GenerationSettings(**given | settings)
    short, long = [5, 6, 7], [9, 8, 7, 6, 5, 10, 11, 12]
    first = generate(tiny_model, tiny_tokenizer, [short], settings)[0][0].ids[0]
    assert first not in short
    tiny_tokenizer.pad_token = tiny_tokenizer.convert_ids_to_tokens(first)
    alone = [generate(tiny_model, tiny_tokenizer, [prompt], settings)[0] for prompt in (short, long)]
    assert alone[0][0].ids[0] == first
    assert generate(tiny_model, tiny_tokenizer, [short, long], settings) == alone


def test_generation_kwargs_reach_transformers(tiny_model, tiny_tokenizer):
    banned = list(range(5, 40))
    settings = GenerationSettings(num_generations=20, generation_kwargs={"suppress_tokens": banned})
    found = generate(tiny_model, tiny_tokenizer, [[5, 6]], settings)
    assert not set(banned) & {i for c in found[0] for i in c.ids}


def test_a_misspelt_generation_kwarg_is_an_error(tiny_model, tiny_tokenizer):
    settings = GenerationSettings(generation_kwargs={"tempreature": 1.0})
    with pytest.raises(ValueError, match="'tempreature', which `generate` does not know; did you mean 'temperature'"):
        generate(tiny_model, tiny_tokenizer, [[5, 6]], settings)


def logp(model, prompt, ids):
    with torch.no_grad():
        logps = model(torch.tensor([[*prompt, *ids]])).logits[0].log_softmax(-1)
    return sum(float(logps[len(prompt) + t - 1, token]) for t, token in enumerate(ids))


def test_beam_search_finds_the_most_likely_completions(tiny_model, tiny_tokenizer):
    """With as many beams as the vocabulary has tokens, completions of two tokens are searched exhaustively."""
    vocabulary = len(tiny_tokenizer)
    settings = GenerationSettings(num_generations=3, max_completion_length=2, num_beams=vocabulary)
    found = generate(tiny_model, tiny_tokenizer, [[5, 6], [9, 10, 11]], settings, batch_size=1)
    for prompt, beams in zip([[5, 6], [9, 10, 11]], found, strict=True):
        with torch.no_grad():
            first = tiny_model(torch.tensor([prompt])).logits[0, -1].log_softmax(-1)
            rows = torch.tensor([[*prompt, token] for token in range(vocabulary)])
            second = tiny_model(rows).logits[:, -1].log_softmax(-1)
        pairs = first[:, None] + second
        pairs[1] = -math.inf  # the completion ends with eos
        best = [divmod(int(i), vocabulary) for i in pairs.flatten().topk(3).indices]
        ended_at_once = [[1]] if first[1] > float(pairs.flatten().topk(3).values[-1]) / 2 else []
        assert [c.ids for c in beams if c.ids != [1]] == [list(pair) for pair in best][: 3 - len(ended_at_once)]


GROUP_BEAM_SEARCH = """
def generate(model, generation_config=None, **kwargs):
    kwargs = {k: v for k, v in kwargs.items() if k in ("input_ids", "attention_mask")}
    groups, penalty = generation_config.num_beam_groups, generation_config.diversity_penalty
    assert (groups, penalty, generation_config.num_return_sequences) == (2, 0.5, 3)
    return model.generate(**kwargs, num_beams=4, num_return_sequences=3, max_new_tokens=4, pad_token_id=0)
"""
DIVERSE = {"num_generations": 3, "num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5}


def test_diverse_beam_search_runs_from_a_local_copy(tiny_model, tiny_tokenizer, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    (tmp_path / "copy" / "custom_generate").mkdir(parents=True)
    (tmp_path / "copy" / "custom_generate" / "generate.py").write_text(GROUP_BEAM_SEARCH)
    settings = GenerationSettings(
        **DIVERSE, max_completion_length=4, trust_remote_code=True, custom_generate=str(tmp_path / "copy")
    )
    found = generate(tiny_model, tiny_tokenizer, PROMPTS, settings)
    assert [len(row) for row in found] == [3] * 4


def test_errors_about_diverse_beam_search_name_the_alternatives(tiny_model, tiny_tokenizer):
    with pytest.raises(ValueError, match=r"trust_remote_code.*beam search.*temperature"):
        GenerationSettings(**DIVERSE)
    settings = GenerationSettings(**DIVERSE, trust_remote_code=True, custom_generate="nobody/nothing")
    with pytest.raises(OSError, match=r"nobody/nothing.*beam search.*temperature"):
        generate(tiny_model, tiny_tokenizer, PROMPTS, settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_generations": 0}, "num_generations must be at least 1, got 0"),
        ({"max_completion_length": 0}, "max_completion_length must be at least 1"),
        ({"temperature": -1}, "temperature must not be negative"),
        ({"temperature": float("nan")}, "`temperature` must be a number, got nan"),
        ({"top_k": -1}, "top_k must not be negative"),
        ({"top_p": 0}, "top_p must be above 0"),
        ({"top_p": 1.1}, "top_p must be above 0 and at most 1"),
        ({"min_p": 2}, "min_p must be between 0"),
        ({"repetition_penalty": 0}, "repetition_penalty must be above 0"),
        ({"num_beams": 2}, r"num_beams \(2\) must be at least num_generations \(4\)"),
        ({"num_beams": 5, "num_beam_groups": 2, "diversity_penalty": 1}, "must be a multiple of num_beam_groups"),
        ({"num_beams": 4, "num_beam_groups": 2}, "must be set together"),
        ({"num_beams": 4, "diversity_penalty": 1}, "must be set together"),
        ({"temperature": 0}, "the same completion every time, but num_generations is 4"),
        ({"generation_kwargs": {"max_new_tokens": 3}}, "max_new_tokens"),
    ],
    ids=str,
)
def test_invalid_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        GenerationSettings(**settings)


def test_invalid_input(tiny_model, tiny_tokenizer):
    with pytest.raises(ValueError, match="Prompt 1 has no tokens"):
        generate(tiny_model, tiny_tokenizer, [[5], []], GenerationSettings())
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        generate(tiny_model, tiny_tokenizer, [[5]], GenerationSettings(), batch_size=0)
    tiny_tokenizer.pad_token = None
    tiny_tokenizer.eos_token = None
    with pytest.raises(ValueError, match="neither a pad nor an eos token"):
        generate(tiny_model, tiny_tokenizer, [[5]], GenerationSettings())


def test_the_pad_token_may_be_the_eos_token(tiny_model, tiny_tokenizer):
    tiny_tokenizer.pad_token = tiny_tokenizer.eos_token
    assert_greedy(tiny_model, tiny_tokenizer)


def test_no_files_and_no_changes_to_the_models_config_remain(tiny_model, tiny_tokenizer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = tiny_model.generation_config.to_dict()
    generate(tiny_model, tiny_tokenizer, PROMPTS, GenerationSettings(max_completion_length=2))
    assert tiny_model.generation_config.to_dict() == config
    assert not list(Path().iterdir())
