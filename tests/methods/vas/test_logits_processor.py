# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0
"""Guided decoding against an oracle without padding or KV cache, and its cost, vocabularies and policies."""

import re
import time

import pytest
import torch
from conftest import make_model, make_tokenizer
from oracles.guided_decoding import (
    PROMPTS,
    K,
    greedy,
    guided_logits,
    run_generate,
    state_value,
)
from transformers import (
    BitsAndBytesConfig,
    GenerationConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TextStreamer,
)

from trl_ext.data.tokenization import left_padded
from trl_ext.generation.generate import generate
from trl_ext.generation_settings import GenerationSettings, eos_token_ids
from trl_ext.guides.blocks import BlockScorer
from trl_ext.guides.retokenize import Retokenizer
from trl_ext.inference.policy import Decoding
from trl_ext.methods.vas.decoding.logits_processor import ValueAugmentedLogitsProcessor
from trl_ext.methods.vas.decoding.value_guide import value_vocabulary_mismatch
from trl_ext.methods.vas.policies import VASDecoding, guided_policy
from trl_ext.methods.vas.value_model.model import ValueModel


def make_value(vocabulary, heads=("reward",), seed=7):
    """A value model whose values differ by a few units between candidates."""
    model = ValueModel.from_backbone(make_model(vocabulary, seed=seed), heads=heads).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        model.head.weight.copy_(0.3 * torch.randn(model.head.weight.shape, generator=generator))
    return model


@pytest.fixture
def value(tiny_tokenizer):
    return make_value(len(tiny_tokenizer))


@pytest.fixture
def two(tiny_tokenizer):
    return make_value(len(tiny_tokenizer), ("helpful", "short"), seed=8)


# -------------------------------------------------------------------------------------------------------- the formula


@pytest.mark.parametrize("beta", [2.0, -2.0])
def test_logits_equal_the_oracle(tiny_model, value, beta):
    """For each row of a left-padded batch, over several steps whose token was a candidate or not."""
    processor = ValueAugmentedLogitsProcessor(value, beta, K, pad_token_id=0)
    ids, mask = left_padded(PROMPTS, 0)
    for step in range(6):
        with torch.no_grad():
            positions = (mask.cumsum(1) - 1).clamp(min=0)
            logits = tiny_model(ids, attention_mask=mask, position_ids=positions).logits[:, -1]
        before = logits.clone()
        found = processor(ids, logits)
        assert torch.equal(logits, before), "scores of the caller are left alone"
        for n in range(len(ids)):
            row = ids[n][mask[n].bool()].tolist()
            assert torch.allclose(found[n], guided_logits(tiny_model, [(value, 0, beta)], row), atol=1e-4)
            changed = found[n] != before[n]
            assert changed.sum() <= K
            assert abs(float((found[n] - before[n]).sum())) < 1e-3  # centred
        chosen = found.topk(3).indices[:, 2:] if step % 2 else found.argmin(1, keepdim=True)
        ids, mask = torch.cat([ids, chosen], 1), torch.cat([mask, torch.ones_like(chosen)], 1)


def test_positive_weights_raise_better_candidates(tiny_model, value):
    ids = torch.tensor([PROMPTS[2]])
    logits = tiny_model(ids).logits[:, -1].detach()
    candidates = logits.topk(K).indices[0].tolist()
    values = torch.tensor([state_value(value, [*PROMPTS[2], a]) for a in candidates])
    best, worst = candidates[int(values.argmax())], candidates[int(values.argmin())]
    up = ValueAugmentedLogitsProcessor(value, 1.0, K)(ids, logits)[0] - logits[0]
    assert up[best] > 0 > up[worst]
    down = ValueAugmentedLogitsProcessor(value, -1.0, K)(ids, logits)[0] - logits[0]
    assert torch.allclose(up, -down, atol=1e-5)


def test_worked_numbers(value):
    """Candidates of values 1, 2 and 6 with beta 0.5: -1, -0.5 and +1.5."""
    value.value_of = lambda hidden: torch.tensor([[[1.0], [2.0], [6.0]]])
    processor = ValueAugmentedLogitsProcessor(value, 0.5, 3)
    scores = torch.full((1, value.config.get_text_config().vocab_size), -5.0)
    scores[0, [4, 8, 2]] = torch.tensor([3.0, 2.0, 1.0])
    found = processor(torch.tensor([[9]]), scores)
    assert found[0, [4, 8, 2]].tolist() == pytest.approx([2.0, 1.5, 2.5])
    assert (found == -5).sum() == found.numel() - 3


def test_several_heads_add_up_over_the_same_candidates(tiny_model, value, two):
    """Large weights reorder the logits: processors in a chain would look at other candidates."""
    processor = ValueAugmentedLogitsProcessor(
        {"kind": value, "more": two}, {"kind": 9.0, "more/helpful": -7.0, "short": 0.5}, K
    )
    assert processor.heads == ("kind", "more/helpful", "more/short")
    ids = torch.tensor([PROMPTS[2]])
    logits = tiny_model(ids).logits[:, -1].detach()
    guides = [(value, 0, 9.0), (two, 0, -7.0), (two, 1, 0.5)]
    expected = guided_logits(tiny_model, guides, PROMPTS[2])
    assert torch.allclose(processor(ids, logits)[0], expected, atol=1e-3)
    parts = [
        ValueAugmentedLogitsProcessor({"kind": value, "more": two}, {name: beta}, K)(ids, logits) - logits
        for name, beta in processor.beta.items()
    ]
    assert torch.allclose(processor(ids, logits), logits + sum(parts), atol=1e-3)
    chain = logits
    for model, head, beta in guides:
        names = model.head_names
        chain = ValueAugmentedLogitsProcessor(model, {names[head]: beta}, K)(ids, chain)
    assert not torch.allclose(chain[0], expected, atol=1e-2)


def test_other_processors_may_leave_fewer_candidates(value):
    scores = torch.full((1, value.config.get_text_config().vocab_size), -torch.inf)
    scores[0, [4, 8]] = torch.tensor([1.0, 2.0])
    found = ValueAugmentedLogitsProcessor(value, 2.0, K)(torch.tensor([PROMPTS[0]]), scores)
    values = [state_value(value, [*PROMPTS[0], a]) for a in (4, 8)]
    mean = sum(values) / 2
    expected = [1 + 2 * (values[0] - mean), 2 + 2 * (values[1] - mean)]
    assert found[0, [4, 8]].tolist() == pytest.approx(expected, abs=1e-4)
    assert (found == -torch.inf).sum() == found.numel() - 2


def test_padding_between_tokens(tiny_model, value):
    """The second turn of a batch of conversations, whose first answers had different lengths: as without padding."""
    ids = torch.tensor([[5, 6, 7, 8, 9, 10, 11], [5, 6, 7, 0, 0, 10, 11], [0, 5, 0, 6, 0, 7, 12]])
    mask = (ids != 0).long()
    scores = torch.randn(3, tiny_model.config.vocab_size, generator=torch.Generator().manual_seed(0))
    rows = [row[keep.bool()].tolist() for row, keep in zip(ids, mask, strict=True)]
    processor = ValueAugmentedLogitsProcessor(value, 2.0, K, attention_mask=mask)
    for column in (13, 14):  # then on the KV cache
        found = processor(ids, scores)
        for n, row in enumerate(rows):
            expected = ValueAugmentedLogitsProcessor(value, 2.0, K)(torch.tensor([row]), scores[n : n + 1])
            torch.testing.assert_close(found[n : n + 1], expected, rtol=1e-4, atol=1e-4)
            rows[n] = [*row, column]
        ids = torch.nn.functional.pad(ids, (0, 1), value=column)


def test_padding_of_unknown_place_is_refused(value):
    """Where padding is within or after texts, and the mask is not known; a single end of a turn is text."""
    scores = torch.zeros(2, value.config.get_text_config().vocab_size)
    within, after = torch.tensor([[5, 6, 7, 8], [5, 0, 0, 8]]), torch.tensor([[5, 6, 7, 8], [5, 6, 0, 0]])
    for ids in (within, after):
        with pytest.raises(ValueError, match=r"Row 1 has the padding token within or after its text.*attention_mask="):
            ValueAugmentedLogitsProcessor(value, 2.0, K, pad_token_id=0)(ids, scores)
    with pytest.raises(ValueError, match="Row 1 has padding on the right"):
        ValueAugmentedLogitsProcessor(value, 2.0, K, attention_mask=(after != 0).long())(after, scores)
    processor = ValueAugmentedLogitsProcessor(value, 2.0, K, attention_mask=torch.ones(2, 2).long(), pad_token_id=0)
    for columns in (2, 3, 4):  # a text may grow by any token
        processor(within[:, :columns], scores)
    turn = torch.cat([within, within], 1)
    with pytest.raises(ValueError, match="assign it to the processor's `attention_mask`"):
        processor(turn, scores)
    processor.attention_mask = (turn != 0).long()
    expected = ValueAugmentedLogitsProcessor(value, 2.0, K)(torch.tensor([[5, 8, 5, 8]]), scores[1:])
    torch.testing.assert_close(processor(turn, scores)[1:], expected, rtol=1e-4, atol=1e-4)
    ends = torch.tensor([[5, 1, 7, 8], [5, 6, 1, 8]])
    ValueAugmentedLogitsProcessor(value, 2.0, K, pad_token_id=1)(ends, scores)


# ----------------------------------------------------------------------------------------------------------- generate


def test_greedy_batch_equals_one_by_one(tiny_model, value):
    """Two rows end early and continue as padding."""
    processor = ValueAugmentedLogitsProcessor(value, 3.0, K)
    expected = [greedy(tiny_model, [(value, 0, 3.0)], prompt, 12) for prompt in PROMPTS]
    assert run_generate(tiny_model, processor, PROMPTS, 12) == expected
    assert [run_generate(tiny_model, processor, [prompt], 12)[0] for prompt in PROMPTS] == expected
    assert expected != [greedy(tiny_model, [], prompt, 12) for prompt in PROMPTS]


def test_ended_rows_do_not_affect_the_others(tiny_model, value):
    ends = greedy(tiny_model, [(value, 0, 3.0)], PROMPTS[0], 3)[2]
    expected = [greedy(tiny_model, [(value, 0, 3.0)], prompt, 10, eos=ends) for prompt in PROMPTS]
    assert len({len(row) for row in expected}) > 1
    ids, mask = left_padded(PROMPTS, 0)
    processor = ValueAugmentedLogitsProcessor(value, 3.0, K, attention_mask=mask)
    output = tiny_model.generate(
        ids,
        attention_mask=mask,
        max_new_tokens=10,
        do_sample=False,
        eos_token_id=ends,
        pad_token_id=0,
        logits_processor=[processor],
    )
    rows = [row[: row.index(ends) + 1] if ends in row else row for row in output[:, ids.shape[1] :].tolist()]
    assert rows == expected
    assert processor.value_calls == 1 + output.shape[1] - ids.shape[1]


@pytest.mark.parametrize("cache", [{"cache_implementation": "static"}, {"use_cache": False}], ids=str)
def test_cache_types_of_the_language_model(tiny_model, value, cache):
    processor = ValueAugmentedLogitsProcessor(value, 3.0, K)
    expected = [greedy(tiny_model, [(value, 0, 3.0)], prompt, 6) for prompt in PROMPTS]
    assert run_generate(tiny_model, processor, PROMPTS, 6, **cache) == expected


@pytest.mark.parametrize(
    "kwargs",
    [
        {"repetition_penalty": 1.7, "no_repeat_ngram_size": 2},
        {"suppress_tokens": [20, 21, 22], "begin_suppress_tokens": [5, 6]},
        {"min_new_tokens": 6},
        {"guidance_scale": 2.0},
        {"prefill_chunk_size": 2},
        {"num_beams": 3},
        {"num_beams": 3, "num_return_sequences": 2, "length_penalty": 0.3},
        {"num_beams": 2, "do_sample": True},
        {"num_return_sequences": 3, "do_sample": True, "temperature": 0.7},
    ],
    ids=str,
)
def test_settings_of_generate(tiny_model, value, kwargs):
    """The tokens of a processor without a KV cache of its own, which reads every sequence again at each step."""

    class Naive(ValueAugmentedLogitsProcessor):
        def __call__(self, input_ids, scores):
            self.reset()
            return super().__call__(input_ids, scores)

    prompts = PROMPTS[2:3] if "prefill_chunk_size" in kwargs else PROMPTS
    found = []
    for kind in (ValueAugmentedLogitsProcessor, Naive):
        torch.manual_seed(0)
        _, mask = left_padded(prompts, 0)
        found.append(run_generate(tiny_model, kind(value, 3.0, K, attention_mask=mask), prompts, 8, **kwargs))
    assert found[0] == found[1]


def test_inference_mode(tiny_model, value):
    """Caches made under it are used outside of it, and the other way round."""
    processor = ValueAugmentedLogitsProcessor(value, 3.0, K)
    expected = greedy(tiny_model, [(value, 0, 3.0)], PROMPTS[2], 12)
    for inside in (True, False):
        processor.reset()
        with torch.inference_mode(inside):
            first = run_generate(tiny_model, processor, PROMPTS[2:3], 6)[0]
        with torch.inference_mode(not inside):
            more = run_generate(tiny_model, processor, [PROMPTS[2] + first], 6)[0]
        assert first + more == expected


@pytest.mark.parametrize("how", ["step", "data", "replaced", "module", "continued"])
def test_weights_that_changed(tiny_model, value, how):
    """A processor that is used again after its value model has learned reads everything again."""
    processor = ValueAugmentedLogitsProcessor(value, 3.0, K)
    first = run_generate(tiny_model, processor, PROMPTS[2:3], 6)[0]
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in list(value.backbone.named_parameters()):
            new = parameter + 0.1 * torch.randn_like(parameter)
            if how in ("step", "continued"):
                parameter.copy_(new)
            elif how == "data":
                parameter.data.copy_(new)
            elif how == "replaced":
                module, _, last = name.rpartition(".")
                setattr(value.backbone.get_submodule(module), last, torch.nn.Parameter(new))
            else:
                parameter.data = new
    if how == "continued":  # with the next token after that of the last call
        expected = greedy(tiny_model, [(value, 0, 3.0)], PROMPTS[2] + first, 4)
        assert run_generate(tiny_model, processor, [PROMPTS[2] + first], 4) == [expected]
    expected = greedy(tiny_model, [(value, 0, 3.0)], PROMPTS[2], 6)
    assert run_generate(tiny_model, processor, PROMPTS[2:3], 6) == [expected]
    calls = processor.value_calls
    run_generate(tiny_model, processor, PROMPTS[2:3], 6)
    assert processor.value_calls - calls == 6, "the prompt is in the cache"


def test_shorter_context_than_the_language_models(tiny_model, tiny_tokenizer, caplog):
    """Beyond a table of positions there is no value; beyond the context of rotary positions it means little."""
    config = GPT2Config(vocab_size=len(tiny_tokenizer), n_embd=32, n_layer=1, n_head=2, n_positions=12)
    learned = ValueModel.from_backbone(GPT2LMHeadModel(config)).eval()
    rotary = ValueModel.from_backbone(make_model(len(tiny_tokenizer), max_position_embeddings=12)).eval()
    ids = [[15, 16, 17], [19]]
    for value, form in ((learned, "learned"), (rotary, "rotary")):
        processor = ValueAugmentedLogitsProcessor({form: value}, {form: 2.0}, K)
        run_generate(tiny_model, processor, ids, 9, eos_token_id=None)  # the last candidates are at position 12
        assert not [record for record in caplog.records if "context" in record.getMessage()]
        if form == "learned":
            with pytest.raises(ValueError, match=r"'learned' has a context of 12 tokens, and a text has 13.*Shorten"):
                run_generate(tiny_model, processor, ids, 10, eos_token_id=None)
        else:
            run_generate(tiny_model, processor, ids, 12, eos_token_id=None)
            assert sum("'rotary' has a context" in record.getMessage() for record in caplog.records) == 1
        assert guided_policy(tiny_model, tiny_tokenizer, value, 2.0, K).context == 12
    processor = ValueAugmentedLogitsProcessor(rotary, 2.0, K)
    assert not processor.static_length_reason(12) and "context of a value" in processor.static_length_reason(13)


def test_samples_follow_the_guided_distribution(tiny_model, value):
    """Counts of the first two tokens of 4,000 samples, with a temperature that is applied after guidance."""
    torch.manual_seed(0)
    n, prompt = 4000, PROMPTS[0]
    processor = ValueAugmentedLogitsProcessor(value, 2.0, K)
    sampled = run_generate(
        tiny_model, processor, [prompt], 2, do_sample=True, temperature=0.7, top_k=0, num_return_sequences=n
    )
    first = (guided_logits(tiny_model, [(value, 0, 2.0)], prompt) / 0.7).softmax(-1)
    counts = torch.tensor([row[0] for row in sampled]).bincount(minlength=len(first))
    assert chi_squared_per_cell(counts, first) < 2.5
    likeliest = int(counts.argmax())
    second = (guided_logits(tiny_model, [(value, 0, 2.0)], [*prompt, likeliest]) / 0.7).softmax(-1)
    counts = torch.tensor([row[1] for row in sampled if row[0] == likeliest]).bincount(minlength=len(second))
    assert chi_squared_per_cell(counts, second) < 2.5


def chi_squared_per_cell(counts, probabilities):
    expected = probabilities * counts.sum()
    big = expected >= 5
    assert big.sum() >= 3
    observed = torch.cat([counts[big].float(), counts[~big].sum()[None].float()])
    wanted = torch.cat([expected[big], expected[~big].sum()[None]]).clamp(min=1.0)
    return float(((observed - wanted) ** 2 / wanted).mean())


def test_num_return_sequences_and_row_betas(tiny_model, value):
    """One weight per prompt, or one per row; top_k=1 makes sampling greedy."""
    processor = ValueAugmentedLogitsProcessor(value, [3.0, -3.0, 0.0, 1.0], K)
    expected = [
        greedy(tiny_model, [(value, 0, beta)], prompt, 6) for prompt, beta in zip(PROMPTS, processor.beta, strict=True)
    ]
    assert run_generate(tiny_model, processor, PROMPTS, 6) == expected
    found = run_generate(tiny_model, processor, PROMPTS, 6, do_sample=True, top_k=1, num_return_sequences=3)
    assert found == [row for row in expected for _ in range(3)]
    processor.beta = [3.0, -3.0, 0.0]
    found = run_generate(tiny_model, processor, [PROMPTS[0]] * 3, 6)
    assert found == [greedy(tiny_model, [(value, 0, beta)], PROMPTS[0], 6) for beta in (3.0, -3.0, 0.0)]
    with pytest.raises(ValueError, match="`beta` has 3 rows and the batch has 4"):
        run_generate(tiny_model, processor, PROMPTS, 6)


def test_weights_change_between_calls_and_rows(tiny_model, two):
    processor = ValueAugmentedLogitsProcessor(two, {"helpful": 2.0}, K)
    for beta in ({"helpful": 2.0}, {"short": -2.0, "helpful": 1.0}, [{"helpful": 3.0}, {"short": 3.0}] * 2):
        processor.beta = beta
        rows = beta if isinstance(beta, list) else [beta] * 4
        expected = [
            greedy(tiny_model, [(two, i, row.get(name, 0.0)) for i, name in enumerate(two.head_names)], prompt, 5)
            for prompt, row in zip(PROMPTS, rows, strict=True)
        ]
        assert run_generate(tiny_model, processor, PROMPTS, 5) == expected


def test_head_that_gets_a_weight_during_generation(tiny_model, value, two):
    processor = ValueAugmentedLogitsProcessor({"a": value, "b": two}, {"a": 2.0}, K)
    ids = PROMPTS[2]
    for beta in ({"a": 2.0}, {"b/short": 1.0}, {"a": 1.0, "b/short": 1.0}):
        processor.beta = beta
        guides = [(value, 0, beta.get("a", 0.0)), (two, 1, beta.get("b/short", 0.0))]
        logits = tiny_model(torch.tensor([ids])).logits[:, -1].detach()
        found = processor(torch.tensor([ids]), logits)[0]
        assert torch.allclose(found, guided_logits(tiny_model, guides, ids), atol=1e-3)
        ids = [*ids, int(found.argmax()), 30]


def test_zero_weight_changes_nothing_and_costs_nothing(tiny_model, value):
    processor = ValueAugmentedLogitsProcessor(value, 0.0, K)
    assert run_generate(tiny_model, processor, PROMPTS) == [greedy(tiny_model, [], prompt, 8) for prompt in PROMPTS]
    assert (processor.value_calls, processor.value_tokens) == (0, 0)


def test_beam_search(tiny_model, value):
    """Against a beam search over the scores of the oracle, which reorders the rows of the cache."""
    beams, length = 3, 5
    processor = ValueAugmentedLogitsProcessor(value, 2.0, K)
    ids, mask = left_padded(PROMPTS[:3], 0)
    output = tiny_model.generate(
        ids,
        attention_mask=mask,
        max_new_tokens=length,
        num_beams=beams,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
        length_penalty=0.0,
        logits_processor=[processor],
    )
    expected = []
    for prompt in PROMPTS[:3]:
        alive = [(0.0, list(prompt))]
        for _ in range(length):
            grown = []
            for score, row in alive:
                plain = tiny_model(torch.tensor([row])).logits[0, -1].detach()
                guided = guided_logits(tiny_model, [(value, 0, 2.0)], row) - plain.logsumexp(-1)
                grown += [(score + float(guided[a]), [*row, int(a)]) for a in guided.topk(beams).indices]
            alive = sorted(grown, key=lambda item: -item[0])[:beams]
        expected.append(alive[0][1][len(prompt) :])
    assert output[:, ids.shape[1] :].tolist() == expected
    assert processor.value_calls == 1 + length


def test_streamer(tiny_model, tiny_tokenizer, value, capsys):
    processor = ValueAugmentedLogitsProcessor(value, 3.0, K)
    ids = torch.tensor([PROMPTS[0]])
    tiny_model.generate(
        ids,
        max_new_tokens=6,
        do_sample=False,
        streamer=TextStreamer(tiny_tokenizer, skip_prompt=True),
        logits_processor=LogitsProcessorList([processor, TemperatureLogitsWarper(0.5)]),
    )
    expected = tiny_tokenizer.decode(greedy(tiny_model, [(value, 0, 3.0)], PROMPTS[0], 6))
    assert capsys.readouterr().out.strip() == expected.strip()


# ------------------------------------------------------------------------------------------------ cost, reuse, padding


def test_every_value_token_is_fed_once(tiny_model, value):
    """The reference code fed 24,344 tokens in 336 calls for this prompt of 64, 16 new tokens and k = 20."""
    torch.manual_seed(0)
    prompt = torch.randint(5, 60, (64,)).tolist()
    fed, real = [], value.backbone.forward
    processor = ValueAugmentedLogitsProcessor(value, 3.0, 20)
    value.backbone.forward = lambda **kwargs: fed.append(kwargs["input_ids"].shape[1]) or real(**kwargs)
    found = run_generate(tiny_model, processor, [prompt], 16, eos_token_id=None)
    assert fed == [64] + [20] * 16
    assert (processor.value_calls, processor.value_tokens) == (17, 384)
    del value.backbone.forward
    assert found == [greedy(tiny_model, [(value, 0, 3.0)], prompt, 16, k=20, eos=None)]


def test_token_outside_the_candidates_is_read_with_the_next_ones(tiny_model, value):
    """Such tokens can be sampled too: they are read in the same forward pass as the next candidates."""
    torch.manual_seed(0)
    fed, real = [], value.backbone.forward
    processor = ValueAugmentedLogitsProcessor(value, 0.1, 2)
    value.backbone.forward = lambda **kwargs: fed.append(kwargs["input_ids"].shape) or real(**kwargs)
    run_generate(tiny_model, processor, PROMPTS, 20, do_sample=True, temperature=3.0, top_k=0, eos_token_id=None)
    assert fed[0] == (4, 7)
    assert set(fed[1:]) == {(4, 2), (4, 3)}
    assert len(fed) == 21


def test_a_prompt_of_several_completions_is_read_once(tiny_model, tiny_tokenizer, value):
    fed, real = [], value.backbone.forward
    processor = ValueAugmentedLogitsProcessor(value, 3.0, K)
    value.backbone.forward = lambda **kwargs: fed.append(kwargs["input_ids"].shape) or real(**kwargs)
    run_generate(tiny_model, processor, PROMPTS, 2, do_sample=True, num_return_sequences=5, eos_token_id=None)
    assert fed[:2] == [(4, 7), (20, 6)]


def test_reused_for_unrelated_prompts(tiny_model, value):
    processor = ValueAugmentedLogitsProcessor(value, 3.0, K)
    others = [[33, 34, 35], [36], [37, 38, 39, 40, 41, 42, 43], [44, 45]]  # of the same shape
    for prompts in (PROMPTS, others, PROMPTS[:2], [[5] * 30], PROMPTS, PROMPTS):
        assert run_generate(tiny_model, processor, prompts, 5) == [
            greedy(tiny_model, [(value, 0, 3.0)], prompt, 5) for prompt in prompts
        ]
    calls = processor.value_calls
    run_generate(tiny_model, processor, PROMPTS, 5)
    assert processor.value_calls == calls + 5, "the same prompts again: cut back, not read again"
    processor.reset()
    assert run_generate(tiny_model, processor, others, 5) == [
        greedy(tiny_model, [(value, 0, 3.0)], p, 5) for p in others
    ]


def test_pad_token_from_training(tiny_model, tiny_tokenizer, value):
    """The config of a value model has the pad token of its training; configs of most backbones have none."""
    expected = [greedy(tiny_model, [(value, 0, 3.0)], prompt, 4) for prompt in PROMPTS]
    value.config.get_text_config().pad_token_id = None
    value.config.pad_token_id = 0
    assert run_generate(tiny_model, ValueAugmentedLogitsProcessor(value, 3.0, K), PROMPTS, 4) == expected
    value.config.record_tokenizer(tiny_tokenizer)
    assert value.config.pad_token_id == tiny_tokenizer.pad_token_id


def test_mask_of_other_prompts(tiny_model, value):
    """A mask belongs to the first prompts; that of others is inferred from padding, or an error is raised."""
    mask = left_padded(PROMPTS, 0)[1]
    processor = ValueAugmentedLogitsProcessor(value, 3.0, K, attention_mask=mask, pad_token_id=0)
    others = [[37, 38, 39, 40, 41, 42, 43], [33, 34], [44, 45], [36]]
    for prompts in (PROMPTS, others):
        expected = [greedy(tiny_model, [(value, 0, 3.0)], prompt, 4) for prompt in prompts]
        assert run_generate(tiny_model, processor, prompts, 4) == expected
    value.config.get_text_config().pad_token_id = None
    processor = ValueAugmentedLogitsProcessor(value, 3.0, K, attention_mask=mask)
    run_generate(tiny_model, processor, PROMPTS, 4)
    with pytest.raises(ValueError, match="not the prompts that `attention_mask` was given for"):
        run_generate(tiny_model, processor, others, 4)
    processor.attention_mask = left_padded(others, 0)[1]
    expected = [greedy(tiny_model, [(value, 0, 3.0)], prompt, 4) for prompt in others]
    assert run_generate(tiny_model, processor, others, 4) == expected


def test_padding_that_is_also_the_start_of_a_text(tiny_model, value):
    """As with GPT-2, every prompt starts with the pad token."""
    prompts = [[1, *prompt] for prompt in PROMPTS]
    expected = [greedy(tiny_model, [(value, 0, 3.0)], prompt, 4) for prompt in prompts]
    ids, mask = left_padded(prompts, 1)
    for settings in ({"pad_token_id": 1}, {"attention_mask": mask}):
        processor = ValueAugmentedLogitsProcessor(value, 3.0, K, **settings)
        output = tiny_model.generate(
            ids,
            attention_mask=mask,
            max_new_tokens=4,
            do_sample=False,
            pad_token_id=1,
            eos_token_id=1,
            logits_processor=[processor],
        )
        rows = output[:, ids.shape[1] :].tolist()
        assert [row[: row.index(1) + 1] if 1 in row else row for row in rows] == expected


def test_much_faster_than_one_candidate_at_a_time(tiny_tokenizer):
    """At least five times; the best of three runs, as other processes may be running."""
    policy = make_model(len(tiny_tokenizer))
    value = make_value(len(tiny_tokenizer))
    prompt = torch.randint(5, 60, (64,), generator=torch.Generator().manual_seed(0))[None]

    def one_by_one(ids, scores):
        top = scores.topk(20)
        values = [value(torch.cat([ids, a.view(1, 1)], 1)).values[0, -1] for a in top.indices[0]]
        return scores.scatter_add(1, top.indices, 3.0 * (torch.stack(values) - sum(values) / 20)[None])

    def seconds(processor, length):
        start = time.perf_counter()
        kwargs = {"max_new_tokens": length, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
        output = policy.generate(prompt, logits_processor=[processor], **kwargs)
        return time.perf_counter() - start, output

    ours = ValueAugmentedLogitsProcessor(value, 3.0, 20)
    rounds = [(seconds(one_by_one, 12), seconds(ours, 12), ours.reset()) for _ in range(3)]
    assert torch.equal(rounds[0][0][1], rounds[0][1][1])
    assert min(slow[0] for slow, *_ in rounds) > 5 * min(fast[0] for _, fast, _ in rounds)


# ------------------------------------------------------------------------------------------- 4 bits, adapters, devices


def test_four_bit_value_model_and_policy(tiny_tokenizer, tmp_path):
    pytest.importorskip("bitsandbytes")
    from transformers import AutoModelForCausalLM

    from trl_ext.models.load import use_exact_4bit_on_cpu

    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
    make_model(len(tiny_tokenizer)).save_pretrained(tmp_path / "policy")
    make_value(len(tiny_tokenizer)).save_pretrained(tmp_path / "value")
    kwargs = {"quantization_config": config, "dtype": torch.float32}
    policy = AutoModelForCausalLM.from_pretrained(tmp_path / "policy", **kwargs)
    use_exact_4bit_on_cpu(policy)
    value = ValueModel.from_pretrained(tmp_path / "value", **kwargs)
    processor = ValueAugmentedLogitsProcessor(value, 3.0, K)
    assert processor.guides[0].reader.reads.tree.form == "shared"
    expected = [greedy(policy, [(value, 0, 3.0)], prompt, 6) for prompt in PROMPTS]
    assert run_generate(policy, processor, PROMPTS, 6) == expected
    assert "Linear4bit" in {type(module).__name__ for module in value.modules()}


def test_adapter_and_head_on_the_policy_itself(tiny_model):
    """The adapter changes the value model, and not the policy whose weights it shares."""
    from peft import LoraConfig

    before = [greedy(tiny_model, [], prompt, 6) for prompt in PROMPTS]
    config = LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    value = ValueModel.on_policy(tiny_model, peft_config=config).eval()
    with torch.no_grad():
        value.head.weight.normal_(std=0.3)
    assert [greedy(tiny_model, [], prompt, 6) for prompt in PROMPTS] == before
    expected = [greedy(tiny_model, [(value, 0, 3.0)], prompt, 6) for prompt in PROMPTS]
    assert expected != before
    assert run_generate(tiny_model, ValueAugmentedLogitsProcessor(value, 3.0, K), PROMPTS, 6) == expected


def test_decoding_with_an_adapter_on_the_policy(tiny_model_dir, tmp_path):
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer

    policy, tokenizer = (
        AutoModelForCausalLM.from_pretrained(tiny_model_dir),
        AutoTokenizer.from_pretrained(tiny_model_dir),
    )
    trained = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    config = LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    value = ValueModel.on_policy(trained, peft_config=config).eval()
    with torch.no_grad():
        value.head.weight.normal_(std=0.3)
    value.save_pretrained(tmp_path / "value")
    decoding = VASDecoding([str(tmp_path / "value")], guide_top_k=K)
    [guided] = decoding.policies(policy, tokenizer, name="base", batch_size=4)
    settings = GenerationSettings(num_generations=1, max_completion_length=4, top_k=1)
    found = [row[0].ids for row in guided.generate(PROMPTS, settings)]
    assert found == [greedy(trained, [(value, 0, 3.0)], prompt, 4) for prompt in PROMPTS]
    assert any("lora" in name for name, _ in policy.named_parameters()), "the weights are shared"
    assert [greedy(policy, [], p, 4) for p in PROMPTS] == [greedy(trained, [], p, 4) for p in PROMPTS]


# ----------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"top_k": 0}, ValueError, "`top_k` must be at least 1, got 0"),
        ({"top_k": -3}, ValueError, "`top_k` must be at least 1, got -3"),
        ({"beta": float("nan")}, ValueError, "`beta` must be a finite number from .* got nan for 'reward'"),
        ({"beta": [1.0, float("inf")]}, ValueError, "`beta` of row 1 must be a finite number"),
        ({"beta": {"helpfull": 1.0}}, ValueError, "weight for 'helpfull', which does not exist; there is 'reward'"),
        ({"beta": [{"reward": 1.0}, {"x": 1}]}, ValueError, "`beta` of row 1 has a weight for 'x'"),
        ({"top_k": 1.5}, ValueError, "`top_k` must be a whole number, got 1.5"),
        ({"top_k": None}, ValueError, "`top_k` must be a whole number, got None"),
        ({"beta": []}, ValueError, "empty list"),
        ({"beta": {"reward": "x"}}, ValueError, "`beta` must be a finite number from .* got 'x' for 'reward'"),
        ({"beta": "3"}, TypeError, "must be a number or a dictionary, got str"),
        ({"retokenize": True}, ValueError, "`retokenize` needs `tokenizer` and a `value_tokenizer`"),
        ({"value_model": {}}, ValueError, "`value_model` is an empty dictionary"),
    ],
    ids=str,
)
def test_invalid_settings(value, settings, error, message):
    with pytest.raises(error, match=message):
        ValueAugmentedLogitsProcessor(**{"value_model": value} | settings)


def test_one_number_for_several_heads(value, two):
    with pytest.raises(
        ValueError, match=r"one number for helpful, short: say which, as in helpful=3 .*\{'helpful': 3\}"
    ):
        ValueAugmentedLogitsProcessor(two)
    with pytest.raises(ValueError, match="there is 'a', 'b/helpful', 'b/short'"):
        ValueAugmentedLogitsProcessor({"a": value, "b": two}, {"reward": 1.0, "nothing": 1.0})
    with pytest.raises(ValueError, match="'helpful'"):  # of which of the two?
        ValueAugmentedLogitsProcessor({"a": two, "b": two}, {"helpful": 1.0})
    processor = ValueAugmentedLogitsProcessor(two, {"short": 1.0})
    with pytest.raises(ValueError, match="does not exist"):
        processor.beta = {"long": 1.0}
    assert processor.beta == {"short": 1.0}


def test_invalid_calls(tiny_model, tiny_tokenizer, value):
    vocabulary = len(tiny_tokenizer)
    with pytest.raises(ValueError, match=f"`top_k` is 5000, but the vocabulary has only {vocabulary} tokens"):
        run_generate(tiny_model, ValueAugmentedLogitsProcessor(value, 3.0, 5000), PROMPTS)
    processor = ValueAugmentedLogitsProcessor(value, 3.0, K)
    with pytest.raises(ValueError, match="Row 1 has no tokens"):
        run_generate(tiny_model, processor, [[5, 6], []])
    with pytest.raises(ValueError, match="Row 0 has no tokens"):
        processor(torch.zeros(1, 0, dtype=torch.long), torch.zeros(1, vocabulary))
    whole = ValueAugmentedLogitsProcessor(value, 3.0, vocabulary)
    expected = greedy(tiny_model, [(value, 0, 3.0)], PROMPTS[0], 3, k=vocabulary)
    assert run_generate(tiny_model, whole, PROMPTS[:1], 3) == [expected]


# -------------------------------------------------------------------------------------------------------- vocabularies


def other_tokenizer():
    """A tokenizer of single letters, in another order and with a start token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = ["<s>", "</s>", "<unk>", "\u0120", "\u010a", *(chr(code) for code in range(126, 32, -1))]
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(vocabulary)}, [], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="</s>"
    )


def test_different_vocabulary_is_rejected(tiny_model, tiny_tokenizer, value):
    other = other_tokenizer()
    message = r"token 0 is '<s>' in its vocabulary and '<\|pad\|>'.*retokenize=True"
    assert re.search(message, value_vocabulary_mismatch(tiny_tokenizer, other))
    with pytest.raises(ValueError, match=message):
        ValueAugmentedLogitsProcessor(value, tokenizer=tiny_tokenizer, value_tokenizer=other)
    assert not value_vocabulary_mismatch(tiny_tokenizer, value)  # its config has no digest of a vocabulary
    value.config.record_tokenizer(other)
    with pytest.raises(ValueError, match="trained with another vocabulary"):
        ValueAugmentedLogitsProcessor({"kind": value}, tokenizer=tiny_tokenizer)
    value.config.record_tokenizer(tiny_tokenizer)
    assert not value_vocabulary_mismatch(tiny_tokenizer, value)
    longer = make_tokenizer()
    longer.add_tokens(["<more>"])
    assert not value_vocabulary_mismatch(tiny_tokenizer, longer)
    assert not value_vocabulary_mismatch(longer, tiny_tokenizer)


def test_vocabularies_of_different_size(tiny_tokenizer, value):
    """Whether one vocabulary is the other with padding can be checked only with tokenizers."""
    larger = make_model(len(tiny_tokenizer) + 8)
    with pytest.raises(ValueError, match=r"has \d+ tokens and the value model \d+.*tokenizer=.*retokenize=True"):
        run_generate(larger, ValueAugmentedLogitsProcessor(value, 3.0, K), PROMPTS, 4)
    same = {"tokenizer": tiny_tokenizer, "value_tokenizer": tiny_tokenizer}
    with torch.no_grad():
        larger.lm_head.weight[-8:] = 0
    expected = [greedy(larger, [(value, 0, 3.0)], prompt, 4) for prompt in PROMPTS[:2]]
    assert run_generate(larger, ValueAugmentedLogitsProcessor(value, 3.0, K, **same), PROMPTS[:2], 4) == expected
    processor = ValueAugmentedLogitsProcessor(value, 3.0, K, **same)
    with pytest.raises(ValueError, match=rf"Token {len(tiny_tokenizer) + 3} is not in the vocabulary"):
        processor(torch.tensor([[5, len(tiny_tokenizer) + 3]]), torch.zeros(1, len(tiny_tokenizer) + 8))
    scores = torch.zeros(1, len(tiny_tokenizer) + 8)
    scores[0, [5, 6, -1]] = torch.tensor([3.0, 2.0, 4.0])  # the last is a candidate without a value
    found = ValueAugmentedLogitsProcessor(value, 3.0, 3, **same)(torch.tensor([[9]]), scores)
    expected = ValueAugmentedLogitsProcessor(value, 3.0, 2)(torch.tensor([[9]]), scores[:, :-8])
    assert found[0, -1] == 4
    torch.testing.assert_close(found[:, :-8], expected)


def test_a_padding_token_more(tiny_tokenizer, value):
    """A padding token that only the language model has, before texts and after those that have ended."""
    padded = make_tokenizer()
    padded.add_special_tokens({"pad_token": "[PAD]"})
    pad = padded.pad_token_id
    value.config.record_tokenizer(tiny_tokenizer)
    assert pad == len(tiny_tokenizer) and not value_vocabulary_mismatch(padded, value)
    policy = make_model(len(padded))
    with torch.no_grad():
        policy.lm_head.weight[pad] = 0
    ends = greedy(policy, [(value, 0, 3.0)], PROMPTS[0], 3)[2]
    expected = [greedy(policy, [(value, 0, 3.0)], prompt, 6, eos=ends) for prompt in PROMPTS]
    processor = ValueAugmentedLogitsProcessor(value, 3.0, K, tokenizer=padded)
    ids, mask = left_padded(PROMPTS, pad)
    output = policy.generate(
        ids, attention_mask=mask, max_new_tokens=6, do_sample=False, eos_token_id=ends, pad_token_id=pad,
        logits_processor=[processor],
    )  # fmt: skip
    rows = output[:, ids.shape[1] :].tolist()
    assert [row[: row.index(ends) + 1] if ends in row else row for row in rows] == expected
    shorter = make_tokenizer()
    value.config.record_tokenizer(padded)
    with pytest.raises(ValueError, match="one that has more tokens: pass `value_tokenizer`"):
        ValueAugmentedLogitsProcessor(value, tokenizer=shorter)
    ValueAugmentedLogitsProcessor(value, tokenizer=shorter, value_tokenizer=padded)


def test_retokenize(tiny_model, tiny_tokenizer):
    """Against values of decoded texts, one candidate at a time."""
    other = other_tokenizer()
    value = make_value(len(other), seed=9)
    names = {"tokenizer": tiny_tokenizer, "value_tokenizer": other}
    processor = ValueAugmentedLogitsProcessor(value, 3.0, K, retokenize=True, **names)

    def value_of(ids):
        text = tiny_tokenizer.decode(ids, skip_special_tokens=True)
        return state_value(value, other(text)["input_ids"] + ([1] if ids[-1] == 1 else []))

    ids, _ = left_padded(PROMPTS, 0)
    logits = torch.randn(4, len(tiny_tokenizer), generator=torch.Generator().manual_seed(0))
    logits[:, 1] = 9.0  # the end is a candidate
    found = processor(ids, logits)
    for n, prompt in enumerate(PROMPTS):
        candidates = logits[n].topk(K).indices.tolist()
        assert 1 in candidates
        values = [value_of([*prompt, a]) for a in candidates]
        expected = [float(logits[n, a]) + 3 * (v - sum(values) / K) for a, v in zip(candidates, values, strict=True)]
        assert found[n, candidates].tolist() == pytest.approx(expected, abs=1e-3)
    assert len(run_generate(tiny_model, processor, PROMPTS, 3)) == 4
    same = ValueAugmentedLogitsProcessor(
        make_value(len(tiny_tokenizer)), tokenizer=tiny_tokenizer, value_tokenizer=tiny_tokenizer, retokenize=True
    )
    assert hasattr(same.guides[0].reader.reads, "tree"), "the same vocabulary: there is nothing to translate"


def test_retokenize_ends_with_the_turn(tiny_model, tiny_tokenizer):
    """Its end is that of the value model's text, though the tokenizer has another end of sequence: Gemma's chat."""
    other = other_tokenizer()
    value = make_value(len(other), seed=9)
    turn = tiny_tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert turn != tiny_tokenizer.eos_token_id
    tiny_model.generation_config.eos_token_id = [tiny_tokenizer.eos_token_id, turn]
    names = {"tokenizer": tiny_tokenizer, "value_tokenizer": other, "retokenize": True}
    ends = eos_token_ids(tiny_model, tiny_tokenizer)
    ids = torch.tensor(PROMPTS[:1])
    logits = torch.randn(1, len(tiny_tokenizer), generator=torch.Generator().manual_seed(0))
    logits[:, turn] = 9.0
    candidates = logits[0].topk(K).indices.tolist()
    found = ValueAugmentedLogitsProcessor(value, 3.0, K, end_token_ids=ends, **names)(ids, logits)

    def value_of(token):
        text = tiny_tokenizer.decode([*PROMPTS[0], token], skip_special_tokens=True)
        return state_value(value, other(text)["input_ids"] + ([other.eos_token_id] if token in ends else []))

    values = [value_of(a) for a in candidates]
    expected = [float(logits[0, a]) + 3 * (v - sum(values) / K) for a, v in zip(candidates, values, strict=True)]
    assert found[0, candidates].tolist() == pytest.approx(expected, abs=1e-3)
    scorer = BlockScorer(
        ValueAugmentedLogitsProcessor(value, 3.0, K, end_token_ids=ends, **names), len(tiny_tokenizer), 0, ids.device
    )
    of_texts, _ = scorer(PROMPTS[:1], [[[candidates[1], turn], [candidates[1]]]])
    text = other(tiny_tokenizer.decode([*PROMPTS[0], candidates[1]], skip_special_tokens=True))["input_ids"]
    wanted = [3 * state_value(value, row) for row in ([*text, other.eos_token_id], text)]
    assert of_texts[0].tolist() == pytest.approx(wanted, abs=1e-3)


def test_retokenizer_rows(tiny_tokenizer):
    retokenizer = Retokenizer(tiny_tokenizer, other_tokenizer())
    first, second, c = tiny_tokenizer.convert_tokens_to_ids(list("abc"))
    ids = torch.tensor([[0, first, second]])
    rows = retokenizer.rows(ids, ids > 0, torch.tensor([[c, 1, 0]]))
    a = other_tokenizer()("a")["input_ids"][1]
    assert rows == [[0, a, a - 1, a - 2], [0, a, a - 1, 1], [0, a, a - 1]]
    with pytest.raises(ValueError, match="Row 0 has no text"):
        Retokenizer(tiny_tokenizer, tiny_tokenizer).rows(torch.tensor([[0]]), torch.ones(1, 1), torch.tensor([[1]]))


# ------------------------------------------------------------------------------------------------------------ policies


def test_sampling_with_processors(tiny_model, tiny_tokenizer, value):
    """With the package's own sampling, that of transformers, and beams."""
    seen = []

    def processors(ids, mask):
        seen.append(ids.shape)
        return [ValueAugmentedLogitsProcessor(value, 3.0, K, attention_mask=mask)]

    expected = [greedy(tiny_model, [(value, 0, 3.0)], prompt, 6) for prompt in PROMPTS]
    one_way = {"max_completion_length": 6, "top_k": 1}
    for settings in (
        GenerationSettings(num_generations=3, **one_way),
        GenerationSettings(num_generations=3, **one_way, generation_kwargs={"min_length": 0}),
        GenerationSettings(num_generations=1, temperature=0, max_completion_length=6),
    ):
        found = generate(tiny_model, tiny_tokenizer, PROMPTS, settings, batch_size=6, processors=processors)
        assert [[c.ids for c in row] for row in found] == [[row] * settings.num_generations for row in expected]
    assert seen[0] == (2, 7)
    beams = GenerationSettings(num_generations=2, num_beams=2, max_completion_length=4)
    assert len(generate(tiny_model, tiny_tokenizer, PROMPTS, beams, processors=processors)) == 4


def test_guided_policy(tiny_model, tiny_tokenizer, value):
    policy = guided_policy(tiny_model, tiny_tokenizer, value, 3.0, K, name="guided", batch_size=3)
    settings = GenerationSettings(num_generations=2, max_completion_length=5, top_k=1)
    expected = [greedy(tiny_model, [(value, 0, 3.0)], prompt, 5) for prompt in PROMPTS]
    assert [[c.ids for c in row] for row in policy.generate(PROMPTS, settings)] == [[row] * 2 for row in expected]
    pieces = []
    one = GenerationSettings(num_generations=1, max_completion_length=5, top_k=1)
    completion = policy.stream(PROMPTS[0], one, pieces.append)
    assert completion.ids == expected[0]
    assert "".join(pieces) == completion.text


def test_logps_are_those_of_the_guided_distribution(tiny_model, tiny_tokenizer, value):
    completions = [[[22, 23, 24], [25]], [[26, 27], []], [[28, 29, 30, 31, 1]], [[32], [33, 34]]]
    policy = guided_policy(tiny_model, tiny_tokenizer, value, 3.0, K, batch_size=4)
    found = policy.logps(PROMPTS, completions)
    for prompt, group, rows in zip(PROMPTS, completions, found, strict=True):
        for completion, logps in zip(group, rows, strict=True):
            assert logps.shape == (len(completion),)
            for t, token in enumerate(completion):
                guided = guided_logits(tiny_model, [(value, 0, 3.0)], [*prompt, *completion[:t]])
                assert float(logps[t]) == pytest.approx(float(guided.log_softmax(-1)[token]), abs=1e-4)


def test_flags_of_the_command_line(tiny_model, tiny_tokenizer, value, two, tmp_path):
    value.save_pretrained(tmp_path / "kind")
    two.save_pretrained(tmp_path / "more")
    tiny_tokenizer.save_pretrained(tmp_path / "kind")
    assert not VASDecoding().active
    assert isinstance(VASDecoding(), Decoding)
    decoding = VASDecoding([str(tmp_path / "kind")], beta=["0", "3"], guide_top_k=K)
    assert decoding.active
    decoding.check()
    base, guided = decoding.policies(tiny_model, tiny_tokenizer, name="base", batch_size=4)
    assert (base.extras["beta"], guided.extras["beta"]) == (0.0, 3.0)
    assert base.name != guided.name
    assert base.series == guided.series
    assert guided.name.startswith("base")
    settings = GenerationSettings(num_generations=1, max_completion_length=4, top_k=1)
    for policy, beta in ((base, 0.0), (guided, 3.0)):
        found = [row[0].ids for row in policy.generate(PROMPTS, settings)]
        assert found == [greedy(tiny_model, [(value, 0, beta)], prompt, 4) for prompt in PROMPTS]
    both = VASDecoding(
        [str(tmp_path / "kind"), f"other={tmp_path / 'more'}"], beta=["kind=2,other/short=-1"], guide_top_k=K
    )
    both.check()
    [policy] = both.policies(tiny_model, tiny_tokenizer, name="base", batch_size=4)
    guides = [(value, 0, 2.0), (two, 1, -1.0)]
    found = [row[0].ids for row in policy.generate(PROMPTS, settings)]
    assert found == [greedy(tiny_model, guides, prompt, 4) for prompt in PROMPTS]


def test_decoding_in_four_bits_and_with_another_tokenizer(tiny_model, tiny_tokenizer, value, tmp_path):
    pytest.importorskip("bitsandbytes")
    value.save_pretrained(tmp_path / "value")
    tiny_tokenizer.save_pretrained(tmp_path / "value")
    decoding = VASDecoding([str(tmp_path / "value")], value_load_in_4bit=True)
    [policy] = decoding.policies(tiny_model, tiny_tokenizer, name="base", batch_size=4)
    settings = GenerationSettings(num_generations=1, max_completion_length=3)
    assert len(policy.generate(PROMPTS, settings)) == 4
    other = other_tokenizer()
    make_value(len(other)).save_pretrained(tmp_path / "other")
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match="has another vocabulary"):
        VASDecoding([str(tmp_path / "other")]).policies(tiny_model, tiny_tokenizer, name="base", batch_size=4)
    decoding = VASDecoding([str(tmp_path / "other")], value_retokenize=True, guide_top_k=3)
    [policy] = decoding.policies(tiny_model, tiny_tokenizer, name="base", batch_size=4)
    assert len(policy.generate(PROMPTS, settings)) == 4


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"guide_top_k": 0}, "`guide_top_k` must be at least 1"),
        ({"beta": ["nan"]}, "`beta` must be a finite number"),
        ({"beta": ["kind=2,short"]}, "name=number,name=number"),
        ({"beta": ["kind=2,kind=3"]}, "different names"),
        ({"beta": ["much"]}, "`beta` must be a number"),
        ({"beta": []}, "`beta` is empty"),
        ({"value_model_name_or_path": ["a/value", "b/value"]}, "two value models called 'value': name them"),
    ],
    ids=str,
)
def test_invalid_flags(settings, message):
    with pytest.raises(ValueError, match=message):
        VASDecoding(**{"value_model_name_or_path": ["x"]} | settings).check()


@pytest.mark.parametrize(
    ("names", "beta", "message"),
    [
        ([""], "helpfull=1", "weight for 'helpfull', which does not exist; there is 'helpful', 'short'"),
        ([""], "2", "`beta` is one number for helpful, short: say which, as in helpful=2 on the command line"),
        (["one=", "other="], "helpfull=1", "there is 'one/helpful', 'one/short', 'other/helpful', 'other/short'"),
        (["one=", "other="], "short=1", "weight for 'short', which does not exist"),
    ],
)
def test_unknown_heads_are_rejected_before_loading(two, names, beta, message, tmp_path):
    two.config.save_pretrained(tmp_path / "two")  # there are no weights to load
    with pytest.raises(ValueError, match=message):
        VASDecoding([f"{name}{tmp_path / 'two'}" for name in names], beta=[beta]).check()
    VASDecoding(
        [f"{name}{tmp_path / 'two'}" for name in names], beta=["one/short=1" if names[1:] else "short=1"]
    ).check()


def test_generation_config_of_the_policy_is_unchanged(tiny_model, value):
    before = tiny_model.generation_config.to_dict()
    config = GenerationConfig(max_new_tokens=2, do_sample=False, pad_token_id=0)
    processor = ValueAugmentedLogitsProcessor(value)
    tiny_model.generate(torch.tensor([[5, 6]]), generation_config=config, logits_processor=[processor])
    assert tiny_model.generation_config.to_dict() == before
