# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Rows that share their prompt: every prediction sees its own prompt and completion, in order, and nothing else."""

from types import SimpleNamespace

import pytest
import torch
from conftest import make_model
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles.logprobs import flat, visible_keys

from trl_ext.logprobs import shared_prefix
from trl_ext.logprobs.prefix_attention import CASCADE
from trl_ext.logprobs.shared_prefix import (
    IGNORE,
    Layout,
    SharedPrefixRows,
    attention_inputs,
    build_rows,
    choose_form,
    dense_mask,
    probe_batch,
    supported_layout,
)


CPU = torch.device("cpu")
PAD = 99
_ = IGNORE

# The example of the module's docstring, with a second prompt whose only completion has one token.
PROMPTS = [[1, 2, 3], [4, 5]]
COMPLETIONS = [[[11, 12], [21]], [[31]]]


def rows_of(form, **kwargs):
    rows = build_rows(PROMPTS, COMPLETIONS, form=form, pad_token_id=PAD, **kwargs)
    return {name: tensor.tolist() for name, tensor in rows.items()}


# ------------------------------------------------------------------------------------------------------------- rows


def test_separate_rows():
    assert rows_of("separate") == {
        "input_ids": [[1, 2, 3, 11], [1, 2, 3, PAD], [4, 5, PAD, PAD]],
        "position_ids": [[0, 1, 2, 3], [0, 1, 2, 0], [0, 1, 0, 0]],
        "shift_labels": [[_, _, 11, 12], [_, _, 21, _], [_, 31, _, _]],
        "completion_index": [[-1, -1, 0, 0], [-1, -1, 1, -1], [-1, 2, -1, -1]],
        "counts": [[1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 0, 0]],
        "attention_mask": [[1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 0, 0]],
    }


def test_dense_rows():
    assert rows_of("dense") == {
        "input_ids": [[1, 2, 3, 11, 3], [4, 5, PAD, PAD, PAD]],
        "position_ids": [[0, 1, 2, 3, 2], [0, 1, 0, 0, 0]],
        "shift_labels": [[_, _, 11, 12, 21], [_, 31, _, _, _]],
        "completion_index": [[-1, -1, 0, 0, 1], [-1, 2, -1, -1, -1]],
        "counts": [[2, 2, 1, 1, 1], [1, 1, 0, 0, 0]],
        "segment_ids": [[0, 0, 1, 1, 2], [0, 1, -1, -1, -1]],
    }


def test_cascade_rows():
    assert rows_of("cascade") == {
        "input_ids": [[1, 2, 4, 3, 11, 3, 5]],
        "position_ids": [[0, 1, 0, 2, 3, 2, 1]],
        "shift_labels": [[_, _, _, 11, 12, 21, 31]],
        "completion_index": [[-1, -1, -1, 0, 0, 1, 2]],
        "counts": [[2, 2, 1, 1, 1, 1, 1]],
        "cu_segments": [0, 2, 3, 5, 6, 7],
        "cu_completions": [0, 3, 4],
        "cu_prompts": [0, 2, 3],
    }


@pytest.mark.parametrize("form", ["separate", "dense", "cascade"])
def test_a_prompt_without_completions_is_an_error(form):
    with pytest.raises(ValueError, match="zip"):
        build_rows([*PROMPTS, [6]], COMPLETIONS, form=form, pad_token_id=PAD)


@pytest.mark.parametrize("form", ["separate", "dense"])
def test_rows_are_padded_to_a_multiple(form):
    plain = build_rows(PROMPTS, COMPLETIONS, form=form, pad_token_id=PAD)
    padded = build_rows(PROMPTS, COMPLETIONS, form=form, pad_token_id=PAD, pad_to_multiple_of=8)
    length = plain["input_ids"].shape[1]
    fill = {"input_ids": PAD, "shift_labels": _, "completion_index": -1, "segment_ids": -1}
    for name, tensor in padded.items():
        assert tensor.shape[1] == 8
        assert tensor[:, :length].equal(plain[name])
        assert (tensor[:, length:] == fill.get(name, 0)).all()


def test_a_full_row_is_not_padded_further():
    rows = build_rows([[1, 2]], [[[3, 4, 5]]], form="separate", pad_token_id=PAD, pad_to_multiple_of=4)
    assert rows["input_ids"].shape == (1, 4)


tokens = st.integers(1, 40)
prompts_and_completions = st.lists(
    st.tuples(
        st.lists(tokens, min_size=1, max_size=5),
        st.lists(st.lists(tokens, min_size=1, max_size=5), min_size=1, max_size=4),
    ),
    min_size=1,
    max_size=4,
).map(lambda pairs: ([p for p, _ in pairs], [c for _, c in pairs]))


@pytest.mark.parametrize("form", ["separate", "dense", "cascade"])
@settings(max_examples=60)
@given(batch=prompts_and_completions)
def test_every_token_is_predicted_once_from_its_complete_prefix(form, batch):
    """In all forms, the position that predicts token t of a completion sees prompt + completion[:t], in order."""
    prompts, completions = batch
    rows = build_rows(prompts, completions, form=form, pad_token_id=PAD)
    visible = visible_keys(form, rows)
    sequences = [p + c for p, group in zip(prompts, completions, strict=True) for c in group]
    starts = [len(p) for p, group in zip(prompts, completions, strict=True) for _ in group]
    predicted = {
        (n, t): 0 for n, (s, start) in enumerate(zip(sequences, starts, strict=True)) for t in range(len(s) - start)
    }
    seen = [0] * len(sequences)
    for row, column in (rows["shift_labels"] != _).nonzero().tolist():
        n = rows["completion_index"][row, column].item()
        t = starts[n] + seen[n]
        assert rows["shift_labels"][row, column] == sequences[n][t]
        assert rows["position_ids"][row, column] == t - 1
        keys = visible[row, column].nonzero().flatten()
        keys = keys[rows["position_ids"][row, keys].argsort(stable=True)]
        assert rows["position_ids"][row, keys].tolist() == list(range(t))
        assert rows["input_ids"][row, keys].tolist() == sequences[n][:t]
        predicted[n, seen[n]] += 1
        seen[n] += 1
    assert set(predicted.values()) == {1}
    assert ((rows["completion_index"] >= 0) == (rows["shift_labels"] != _)).all()


@pytest.mark.parametrize("form", ["dense", "cascade"])
@settings(max_examples=30)
@given(batch=prompts_and_completions)
def test_shared_rows_hold_each_prompt_once(form, batch):
    prompts, completions = batch
    rows = build_rows(prompts, completions, form=form, pad_token_id=PAD)
    held = (rows["input_ids"] != PAD).sum().item()
    assert held == sum(len(p) - 1 for p in prompts) + sum(map(len, flat(completions)))


def test_no_row_of_the_mask_is_empty():
    # A row that sees nothing is NaN after the softmax, and NaN times the zero gradient of padding is NaN.
    mask = dense_mask(torch.tensor([[0, 1, 2, -1, -1]]))
    assert mask.any(dim=-1).all()
    assert mask.tolist() == [
        [
            [
                [True, False, False, False, False],
                [True, True, False, False, False],
                [True, False, True, False, False],
                [False, False, False, True, False],
                [False, False, False, False, True],
            ]
        ]
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_eager_attention_gets_a_mask_to_add(dtype):
    rows = build_rows(PROMPTS, COMPLETIONS, form="dense", pad_token_id=PAD)
    boolean = attention_inputs(rows, "sdpa", dtype, CPU)["attention_mask"]
    added = attention_inputs(rows, "eager", dtype, CPU)["attention_mask"]
    assert added.dtype == dtype
    assert boolean.dtype == torch.bool
    assert added[boolean].eq(0).all()
    assert added[~boolean].eq(torch.finfo(dtype).min).all()


# ----------------------------------------------------------------------------------------------------- which form


def config_of(attention="sdpa", **changes):
    settings = {
        "_attn_implementation": attention,
        "hidden_size": 64,
        "num_attention_heads": 4,
        "is_encoder_decoder": False,
        **changes,
    }
    config = SimpleNamespace(**settings)
    config.get_text_config = lambda: config
    return config


def model_of(device="cpu", backend=True, **config):
    return SimpleNamespace(
        config=config_of(**config), device=torch.device(device), _supports_attention_backend=backend
    )


@pytest.mark.parametrize(
    ("config", "form", "reason"),
    [
        ({}, "dense", "sdpa"),
        ({"attention": "eager"}, "dense", "eager"),
        ({"attention": CASCADE}, "cascade", "flash"),
        ({"attention": "flash_attention_2"}, "separate", "'flash_attention_2'"),
        ({"attention": "flex_attention"}, "separate", "'flex_attention'"),
        ({"attention": "someone_elses"}, "separate", "'someone_elses'"),
        ({"layer_types": ["full_attention", "full_attention"]}, "dense", "sdpa"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "separate", "sliding_attention"),
        ({"layer_types": ["linear_attention"]}, "separate", "linear_attention"),
        ({"sliding_window": 4096}, "separate", "sliding_attention"),
        ({"sliding_window": 4096, "use_sliding_window": False}, "dense", "sdpa"),
        ({"sliding_window": None}, "dense", "sdpa"),
        ({"window_size": 256}, "separate", "window_size"),
        ({"attention_chunk_size": 8192}, "separate", "attention_chunk_size"),
        ({"is_encoder_decoder": True}, "separate", "the decoder rows of an encoder-decoder hold no prompt"),
        ({"num_attention_heads": None}, "separate", "the model has no attention heads"),
    ],
)
def test_supported_layout_of_a_config(config, form, reason):
    layout = supported_layout(model_of(**config))
    assert layout.form == form
    assert layout.reason == reason if " " in reason else reason in layout.reason


@pytest.mark.parametrize(
    ("model", "form"),
    [
        ({}, "cascade"),
        ({"attention": "flash_attention_2"}, "cascade"),
        ({"attention": "eager"}, "dense"),
        ({"backend": False}, "dense"),
        ({"head_dim": 256}, "cascade"),
        ({"head_dim": 320}, "dense"),
        ({"head_dim": 12}, "dense"),
        ({"hidden_size": 48}, "dense"),  # heads of 12
        ({"attn_logit_softcapping": 50.0}, "dense"),
        ({"attention_dropout": 0.1}, "dense"),
        ({"layer_types": ["sliding_attention"]}, "separate"),
    ],
)
def test_supported_layout_on_a_gpu(monkeypatch, model, form):
    monkeypatch.setattr(shared_prefix, "supports_flash_attention", lambda device: device == torch.device("cuda"))
    assert supported_layout(model_of(device="cuda", **model)).form == form


def test_gpus_without_flash_attention_get_dense_rows(monkeypatch):
    monkeypatch.setattr(shared_prefix, "supports_flash_attention", lambda device: False)
    assert supported_layout(model_of(device="cuda")).form == "dense"


def lengths(prompt, *completions):
    """One prompt and its completions, by their lengths."""
    return [[1] * prompt], [[[1] * n for n in completions]]


DENSE, FLASH = Layout("dense", ""), Layout("cascade", "")


@pytest.mark.parametrize(
    ("layout", "batch", "setting", "form"),
    [
        (DENSE, lengths(128, *[128] * 6), "auto", "dense"),
        (DENSE, lengths(512, *[128] * 6), "auto", "dense"),
        (FLASH, lengths(128, *[128] * 6), "auto", "cascade"),
        (DENSE, lengths(128, 128), "auto", "separate"),  # K = 1: nothing to share
        (FLASH, lengths(128, 128), "auto", "separate"),
        (DENSE, lengths(2, *[60] * 6), "auto", "separate"),  # little to share, and a long row costs attention
        (DENSE, lengths(2, *[60] * 6), "always", "dense"),
        (DENSE, lengths(512, *[8] * 6), "never", "separate"),
        (FLASH, lengths(512, *[8] * 6), "never", "separate"),
        (Layout("separate", "no"), lengths(512, *[8] * 6), "always", "separate"),
        (FLASH, lengths(1, *[8] * 6), "always", "separate"),  # nothing before the copied token: no keys for flash
        (FLASH, lengths(2, *[8] * 6), "always", "cascade"),
        (DENSE, lengths(1, 4, 4), "always", "dense"),
    ],
)
def test_choose_form(layout, batch, setting, form):
    assert choose_form(layout, *batch, hidden_size=256, setting=setting) == form


@given(
    st.lists(
        st.tuples(st.integers(2, 60), st.lists(st.integers(1, 40), min_size=1, max_size=5)), min_size=1, max_size=4
    )
)
@settings(max_examples=200)
def test_the_form_with_fewer_operations_is_chosen(groups):
    """Twice the docstring's operations of a layer, counted row by row; within 5 % either form is fine."""

    def operations(rows):
        return sum(positions * (24 * 64**2 + 4 * 64 * keys) for positions, keys in rows)

    prompts, completions = ([[1] * p for p, _ in groups], [[[1] * c for c in group] for _, group in groups])
    longest = max(p + c - 1 for p, group in groups for c in group)
    totals = [p - 1 + sum(group) for p, group in groups]
    separate = operations([(longest, longest) for _, group in groups for _ in group])
    shared = {
        "dense": operations([(max(totals), max(totals)) for _ in groups]),
        "cascade": operations([(total, longest) for total in totals]),
    }
    for layout in (DENSE, FLASH):
        chosen = choose_form(layout, prompts, completions, hidden_size=64)
        assert chosen == (layout.form if shared[layout.form] < 0.95 * separate else "separate")


def test_padding_of_short_rows_counts_for_a_mask_and_not_for_flash_attention():
    """Three prompts with two short completions, and one with six of 60 tokens: rows with a mask are all that long."""
    short, long = lengths(8, 4, 4), lengths(8, *[60] * 6)
    prompts, completions = 3 * short[0] + long[0], 3 * short[1] + long[1]
    assert choose_form(DENSE, prompts, completions, hidden_size=256) == "separate"
    assert choose_form(FLASH, prompts, completions, hidden_size=256) == "cascade"
    assert choose_form(DENSE, *lengths(600, 8, 8), hidden_size=256) == "dense"


@pytest.mark.parametrize("layout", [DENSE, FLASH], ids=lambda layout: layout.form)
def test_rows_are_shared_where_they_have_a_third_fewer_tokens(layout):
    prompts, completions = lengths(48, *[48] * 4)  # 4 x 95 positions become 47 + 4 x 48
    assert choose_form(layout, prompts, completions, hidden_size=128) == layout.form


def test_a_prompt_of_one_token_keeps_its_batch_in_separate_rows():
    (prompt,), (group,) = lengths(64, *[8] * 6)
    assert choose_form(FLASH, [prompt, [1]], [group, [[2], [3]]], 256) == "separate"
    assert choose_form(FLASH, [prompt, [1, 1]], [group, [[2], [3]]], 256) == "cascade"


@pytest.mark.parametrize(("rounding", "form"), [(0.05, "dense"), (0.02, "separate")])
def test_shared_rows_may_round_as_much_as_padding_does(rounding, form):
    """In half precision: shared rows are 0.15 off, another prompt 0.5, separate rows with more padding `rounding`."""

    class Rows(SharedPrefixRows):
        def probe_values(self, model, form, prompts, completions):
            other_prompt = prompts != probe_batch(64)[0]
            off = 0.15 if form == "dense" else 0.5 if other_prompt else rounding if self.pad_to_multiple_of else 0.0
            return torch.full((4, 1), 10.0 * (1 + off))

    model = make_model(64).to(torch.bfloat16)
    rows = Rows(model, pad_token_id=0)
    assert rows.layout.form == "dense"
    rows.verify(model)
    assert rows.layout.form == form and rows.pad_to_multiple_of == 0


def test_rows_of_flash_attention_are_not_padded():
    """Its kernels take any length, and padding would need a segment of its own."""
    model = make_model(64)
    rows = SharedPrefixRows(model, pad_token_id=PAD, pad_to_multiple_of=64)
    for form, length in (("separate", 64), ("dense", 64), ("cascade", (2 + 1) + (2 + 1 + 1))):
        columns, inputs = rows.inputs(model, form, PROMPTS, COMPLETIONS)
        assert columns["input_ids"].shape[1] == inputs["input_ids"].shape[1] == length, form
    assert inputs["attention_mask"].shape == (1, 1, 1, 1)  # what transformers passes on as it is


def test_the_layout_is_chosen_once_for_a_model_that_stays_where_it_is(monkeypatch, caplog):
    chosen = []
    monkeypatch.setattr(
        shared_prefix, "supported_layout", lambda base: chosen.append(base) or Layout("dense", "a test")
    )

    class Rows(SharedPrefixRows):
        def probe_values(self, model, form, prompts, completions):
            return torch.tensor([[float(sum(map(sum, prompts)))]])

    model = make_model(64)
    with caplog.at_level("INFO", logger="trl_ext.logprobs.shared_prefix"):
        Rows(model, pad_token_id=0).verify(model)
    assert chosen == [model]
    assert caplog.messages == ["Prompts are shared between completions by a test."]
