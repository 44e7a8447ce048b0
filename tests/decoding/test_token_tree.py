# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0
"""Candidates on a shared cache against one uncached forward pass per candidate, without padding or batch."""

import logging

import pytest
import torch
from conftest import make_model
from oracles.token_tree import (
    CANDIDATES,
    CONFIGS,
    MORE,
    PROMPTS,
    RECOMPUTED,
    SHARED,
    SMALL,
    VOCABULARY,
    backbone,
    branches_by_loop,
    close,
    states,
)
from transformers import (
    AutoModel,
    BitsAndBytesConfig,
    GPT2Config,
)

from trl_ext.data.tokenization import left_padded
from trl_ext.decoding import tree_backends
from trl_ext.decoding.token_tree import Tree
from trl_ext.decoding.tree_backends import RecomputeBackend, probe_walk
from trl_ext.guides.follower import Follower
from trl_ext.models.probe import probe_tokens


def walk(model, tree):
    """Every operation, each checked against loops over plain sequences."""
    ids, mask = left_padded(PROMPTS, 0)
    rows = [list(row) for row in PROMPTS]
    hidden = tree.start(ids, mask)
    for n, row in enumerate(rows):
        assert close(hidden[n, -len(row) :], states(model, row))
    for candidates in (CANDIDATES, MORE):  # the first are not kept
        assert close(tree.branch(torch.tensor(candidates)), branches_by_loop(model, rows, candidates))
    tree.keep(torch.tensor([2, 0, 1, 2]))
    rows = [[*row, tokens[i]] for row, tokens, i in zip(rows, MORE, (2, 0, 1, 2), strict=True)]
    found = tree.branch(torch.tensor(CANDIDATES), after_NT=torch.tensor([[50, 51], [52, 53], [54, 55], [56, 57]]))
    rows = [[*row, 50 + 2 * n, 51 + 2 * n] for n, row in enumerate(rows)]
    assert close(found, branches_by_loop(model, rows, CANDIDATES))
    tree.reorder(torch.tensor([2, 2, 0, 1]))
    rows, candidates = [rows[n] for n in (2, 2, 0, 1)], [CANDIDATES[n] for n in (2, 2, 0, 1)]
    tree.keep(torch.tensor([3, 0, 1, 1]))  # with the candidates of the rows
    rows = [[*row, tokens[i]] for row, tokens, i in zip(rows, candidates, (3, 0, 1, 1), strict=True)]
    hidden = tree.append(torch.tensor([[3], [4], [5], [6]]))
    rows = [[*row, 3 + n] for n, row in enumerate(rows)]
    assert close(hidden[:, 0], torch.stack([states(model, row)[-1] for row in rows]))
    assert close(tree.branch(torch.tensor(MORE)), branches_by_loop(model, rows, MORE))
    tree.crop(tree.length - 3)
    rows = [row[:-3] for row in rows]
    assert close(tree.branch(torch.tensor(CANDIDATES)), branches_by_loop(model, rows, CANDIDATES))
    tree.reorder(torch.tensor([3, 1]))
    rows = [rows[3], rows[1]]
    assert close(tree.branch(torch.tensor(CANDIDATES[:2])), branches_by_loop(model, rows, CANDIDATES[:2]))
    assert tree.ids_NS.shape == tree.mask_NS.shape == (2, tree.length)
    assert [ids[mask].tolist() for ids, mask in zip(tree.ids_NS, tree.mask_NS, strict=True)] == rows


# Gemma 2 caps its scores, which SDPA cannot.
@pytest.mark.parametrize(
    ("name", "attention"),
    [
        (name, attention)
        for name in SHARED
        for attention in ("sdpa", "eager")
        if (name, attention) != ("gemma2", "sdpa")
    ],
)
def test_shared_cache_is_exact(name, attention):
    model = backbone(name, attention)
    tree = Tree(model)
    assert (tree.form, tree.reason) == ("shared", "")
    walk(model, tree)


@pytest.mark.parametrize("name", CONFIGS)
def test_candidates_of_some_rows_alone(name):
    """They are those of these rows in a full batch; then all rows go on, and there is nothing to keep."""
    model = backbone(name)
    tree = Tree(model)
    tree.start(*left_padded(PROMPTS, 0))
    rows, some = [list(prompt) for prompt in PROMPTS], [3, 1]
    for token in (9, 10):
        candidates = [CANDIDATES[i] for i in some]
        tree.branch(torch.tensor(CANDIDATES))
        found = tree.branch_some(torch.tensor(some), torch.tensor(candidates))
        assert close(found, branches_by_loop(model, [rows[i] for i in some], candidates))
        with pytest.raises(ValueError, match="no candidates to keep"):
            tree.keep(torch.tensor([0, 0, 0, 0]))
        hidden = tree.append(torch.tensor([[token]] * 4))
        rows = [[*row, token] for row in rows]
        assert close(hidden[:, 0], torch.stack([states(model, row)[-1] for row in rows]))
    with pytest.raises(ValueError, match=r"shape .* for 1 rows"):
        tree.branch_some(torch.tensor([0]), torch.tensor(candidates))


@pytest.mark.parametrize("name", CONFIGS)
def test_further_candidates_of_some_rows(name):
    """A row may keep a first or a further candidate; later hidden states are those of the tokens in order."""
    model = backbone(name)
    tree = Tree(model)
    tree.start(*left_padded(PROMPTS, 0))
    rows = [list(prompt) for prompt in PROMPTS]
    some = torch.tensor([3, 1])
    for choice in ([0, 4, 2, 1], [3, 6, 0, 5], [1, 2, 3, 4]):
        candidates, more = torch.tensor(CANDIDATES), torch.tensor(MORE)[some]
        assert close(tree.branch(candidates), branches_by_loop(model, rows, CANDIDATES))
        found = tree.branch_more(some, more)
        assert close(found, branches_by_loop(model, [rows[i] for i in some], more.tolist()))
        tree.keep(torch.tensor(choice))
        for i, row in enumerate(rows):
            row.append(CANDIDATES[i][choice[i]] if choice[i] < 4 else MORE[i][choice[i] - 4])
    assert [row[mask].tolist() for row, mask in zip(tree.ids_NS, tree.mask_NS, strict=True)] == rows
    assert tree.calls == 1 + 3 * 2
    assert close(
        tree.append(torch.tensor([[9]] * 4))[:, 0], torch.stack([states(model, [*row, 9])[-1] for row in rows])
    )
    with pytest.raises(ValueError, match="Call `branch` first"):
        tree.branch_more(some, more)
    tree.branch(candidates)
    tree.branch_more(some, more)
    with pytest.raises(ValueError, match="at most once"):
        tree.branch_more(some, more)


@pytest.mark.parametrize("name", RECOMPUTED)
def test_other_models_compute_candidates_without_a_cache_and_log_it(name, caplog):
    model = backbone(name)
    with caplog.at_level(logging.WARNING, logger="trl_ext"):
        tree = Tree(model)
        Tree(model)
    assert tree.form == "recompute"
    assert tree.reason
    assert [
        record.message
        for record in caplog.records
        if type(model).__name__ in record.message and "slow" in record.message
    ] == [caplog.records[0].message]
    walk(model, tree)


def test_without_a_cache_in_several_forward_passes(monkeypatch):
    monkeypatch.setattr(tree_backends, "RECOMPUTE_POSITIONS", 40)
    model = backbone("mamba")
    walk(model, Tree(model))


def test_attention_without_custom_masks_uses_no_cache():
    """Flash and flex attention. Neither can be loaded here, so the name is set in the config."""
    model = backbone()
    model.config._attn_implementation = "flash_attention_2"
    tree = Tree(model)
    assert tree.form == "recompute"
    assert "flash_attention_2" in tree.reason
    assert "attn_implementation='sdpa'" in tree.reason


def test_a_model_that_ignores_the_mask_is_detected(monkeypatch):
    """Its config supports a shared cache, but candidates would see each other."""
    model = backbone()
    real = model.forward

    def deaf(**kwargs):
        mask = kwargs.get("attention_mask")
        if mask is not None and mask.ndim == 4:
            kwargs["attention_mask"] = None
        return real(**kwargs)

    monkeypatch.setattr(model, "forward", deaf)
    for dtype in (torch.float32, torch.bfloat16):
        tree = Tree(model.to(dtype))
        assert tree.form == "recompute"
        assert "computes something else" in tree.reason
    walk(model.float(), Tree(model))


def test_a_mask_without_the_sliding_window_is_detected(monkeypatch):
    """The window is far longer than the rows of the self-test."""
    model = backbone("mistral sliding")
    model.config.sliding_window = 1000
    monkeypatch.setattr(tree_backends, "SLIDING", "full_attention")
    assert Tree(model).form == "recompute"
    assert model.config.sliding_window == 1000


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2"])
def test_half_precision_keeps_the_shared_cache(name):
    model = backbone(name, dtype=torch.bfloat16)
    tree = Tree(model)
    assert tree.form == "shared"
    ids, mask = left_padded(PROMPTS, 0)
    tree.start(ids, mask)
    found, expected = tree.branch(torch.tensor(CANDIDATES)), branches_by_loop(model, PROMPTS, CANDIDATES)
    assert ((found - expected).norm(dim=-1) / expected.norm(dim=-1)).mean() < 0.05


def test_one_candidate_one_row_no_mask():
    model = backbone()
    tree = Tree(model)
    tree.start(torch.tensor([PROMPTS[0]]))
    assert close(tree.branch(torch.tensor([[22]])), branches_by_loop(model, PROMPTS[:1], [[22]]))


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_long_completions_outgrow_the_allocated_cache(name):
    model = backbone(name)
    tree = Tree(model)
    ids, mask = left_padded(PROMPTS[:2], 0)
    tree.start(ids, mask)
    rows = [list(row) for row in PROMPTS[:2]]
    for step in range(100):
        candidates = [[(step + i) % VOCABULARY, (3 * step + 7 * i + 1) % VOCABULARY] for i in (0, 5)]
        found = tree.branch(torch.tensor(candidates))
        tree.keep(torch.tensor([step % 2, 0]))
        if step % 33 == 0:
            assert close(found, branches_by_loop(model, rows, candidates), 3e-4)
        rows = [[*row, tokens[i]] for row, tokens, i in zip(rows, candidates, (step % 2, 0), strict=True)]
    assert tree.length > 64 + 5
    assert close(tree.branch(torch.tensor(MORE[:2])), branches_by_loop(model, rows, MORE[:2]), 3e-4)


def test_every_token_is_computed_once():
    model = backbone()
    tree, forwards, real = Tree(model), [], model.forward
    model.forward = lambda **kwargs: forwards.append(kwargs["input_ids"].shape) or real(**kwargs)
    ids, mask = left_padded(PROMPTS, 0)
    tree.start(ids, mask)
    for step in range(10):
        tree.branch(torch.tensor(CANDIDATES))
        tree.keep(torch.tensor([step % 4, 0, 1, 3]))
    assert forwards == [(4, 8)] + [(4, 4)] * 10
    assert (tree.calls, tree.tokens) == (11, 4 * 8 + 10 * 4 * 4)
    assert tree.length == 18


def test_a_tree_starts_again():
    model = backbone()
    tree = Tree(model)
    for prompts in (PROMPTS, PROMPTS[1:3], [[9, 8, 7]]):
        tree.start(*left_padded(prompts, 0))
        candidates = CANDIDATES[: len(prompts)]
        assert close(tree.branch(torch.tensor(candidates)), branches_by_loop(model, prompts, candidates))


@pytest.mark.parametrize("layer", [0, 1])
def test_a_text_is_read_anew_after_an_interruption(layer):
    """
    Ctrl-C within any forward pass of a guide, in its first layer or between two: the text is guided again, or goes on,
    as with a new guide.
    """
    model = backbone()
    passes, stop_at = 0, 0

    def interrupt(module, inputs):
        nonlocal passes
        passes += 1
        if passes == stop_at:
            raise KeyboardInterrupt

    model.layers[layer].mlp.register_forward_pre_hook(interrupt)
    candidates = torch.tensor(CANDIDATES[:2])

    def guided_text(follower):
        """One token is a candidate, one is not; then some rows are guided, and all rows again."""
        ids, found = torch.tensor([PROMPTS[0]] * 2), []
        for step in range(4):
            rows = torch.tensor([1]) if step == 2 else None
            found.append(follower.branch(ids, candidates if rows is None else candidates[1:], rows_R=rows))
            ids = torch.cat([ids, candidates[:, :1] if step == 0 else torch.full((2, 1), 40 + step)], 1)
        return ids, found

    follower, passes = Follower(model), 0
    longer, expected = guided_text(follower)
    for stop_at in range(1, passes + 1):  # noqa: B007 (the hook reads it)
        for goes_on in (False, True):
            follower, passes = Follower(model), 0
            with pytest.raises(KeyboardInterrupt):
                guided_text(follower)
            if goes_on:
                assert close(follower.branch(longer, candidates), Follower(model).branch(longer, candidates))
            else:
                assert all(close(a, b) for a, b in zip(guided_text(follower)[1], expected, strict=True))


def test_training_mode_is_restored_and_dropout_is_off():
    torch.manual_seed(0)
    model = AutoModel.from_config(GPT2Config(**SMALL, n_head=4, resid_pdrop=0.5)).eval()
    expected = branches_by_loop(model, PROMPTS, CANDIDATES)
    model.train()
    tree = Tree(model)
    tree.start(*left_padded(PROMPTS, 0))
    found = tree.branch(torch.tensor(CANDIDATES))
    assert close(found, expected)
    assert not found.requires_grad
    assert all(module.training for module in model.modules())


def test_adapter_takes_part():
    from peft import LoraConfig, PromptTuningConfig, get_peft_model

    before = branches_by_loop(backbone(), PROMPTS, CANDIDATES)
    model = get_peft_model(backbone(), LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False))
    model.eval()
    tree = Tree(model)
    tree.start(*left_padded(PROMPTS, 0))
    found = tree.branch(torch.tensor(CANDIDATES))
    assert close(found, branches_by_loop(model, PROMPTS, CANDIDATES))
    assert not close(found, before, 0.1)
    with pytest.raises(ValueError, match="virtual tokens"):
        Tree(get_peft_model(backbone(), PromptTuningConfig(task_type="FEATURE_EXTRACTION", num_virtual_tokens=3)))


def test_four_bits(tmp_path):
    from trl_ext.models.load import use_exact_4bit_on_cpu

    make_model(VOCABULARY).save_pretrained(tmp_path)
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
    model = AutoModel.from_pretrained(tmp_path, quantization_config=config, dtype=torch.float32).eval()
    use_exact_4bit_on_cpu(model)
    tree = Tree(model)
    assert tree.form == "shared"
    walk(model, tree)


def test_bad_input():
    model = backbone()
    tree = Tree(model)
    with pytest.raises(ValueError, match="call `start` first"):
        tree.branch(torch.tensor([[1]]))
    ids, mask = left_padded(PROMPTS, 0)
    with pytest.raises(ValueError, match=r"Row 1 has no tokens"):
        tree.start(ids, mask * torch.tensor([1, 0, 1, 1])[:, None])
    with pytest.raises(ValueError, match="Row 0 has no tokens"):
        tree.start(torch.zeros(2, 0, dtype=torch.long))
    with pytest.raises(ValueError, match="Row 0 has padding on the right: pad prompts on the left"):
        tree.start(ids, mask.flip(1))
    with pytest.raises(ValueError, match=r"mask has shape \(4, 3\), the ids have \(4, 8\)"):
        tree.start(ids, mask[:, :3])
    tree.start(ids, mask)
    with pytest.raises(ValueError, match="no candidates to keep"):
        tree.keep(torch.tensor([0, 0, 0, 0]))
    for wrong in (torch.tensor([[1, 2]]), torch.tensor([1, 2, 3, 4]), torch.zeros(4, 0, dtype=torch.long)):
        with pytest.raises(ValueError, match="one row for each of the 4 prefixes"):
            tree.branch(wrong)
        with pytest.raises(ValueError, match="one row for each of the 4 prefixes"):
            tree.append(wrong)
    tree.branch(torch.tensor(CANDIDATES))
    tree.keep(torch.tensor([0, 0, 0, 0]))
    with pytest.raises(ValueError, match="no candidates to keep"):
        tree.keep(torch.tensor([0, 0, 0, 0]))
    for length in (100, 0, 3):  # the row of one token has none in the first three columns
        with pytest.raises(ValueError, match=f"Cannot keep {length} of 9 columns"):
            tree.crop(length)


def test_prefixes_are_cut_after_a_token_of_every_row():
    """The second row has padding between its tokens: it may end before it or behind it, not in it."""
    model = make_model(64).model
    tree = Tree(model)
    tree.start(torch.tensor([[5, 6, 7, 8], [9, 0, 11, 12]]), torch.tensor([[1, 1, 1, 1], [1, 0, 1, 1]]))
    candidates = torch.tensor([[20, 21], [22, 23]])
    tree.branch(candidates)
    tree.crop(4)  # all of it: the candidates stay
    assert tree.length == 4 and torch.equal(tree.branches_Nk, candidates)
    with pytest.raises(ValueError, match="Cannot keep 2 of 4 columns"):
        tree.crop(2)
    tree.crop(3)
    assert tree.branches_Nk is None
    assert close(tree.branch(candidates), branches_by_loop(model, [[5, 6, 7], [9, 11]], candidates.tolist()))
    with pytest.raises(ValueError, match=r"^The tokens have shape \(1, 1\)"):
        tree.branch(candidates, after_NT=torch.tensor([[3]]))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", SHARED)
def test_on_a_gpu(name):
    model = backbone(name)
    expected = branches_by_loop(model, PROMPTS, CANDIDATES)
    tree = Tree(model.cuda())
    assert tree.form == "shared"
    ids, mask = left_padded(PROMPTS, 0)
    tree.start(ids.cuda(), mask.cuda())
    assert close(tree.branch(torch.tensor(CANDIDATES).cuda()).cpu(), expected, 2e-3)


def test_recomputed_rows_do_not_depend_on_their_padding():
    """More padding is the other layout that shows how far rounding goes."""
    model = make_model(64).model
    ids = torch.tensor([probe_tokens(64, 14)] * 2)
    with torch.no_grad():
        plain, padded = (probe_walk(RecomputeBackend(model, {}, padding), ids) for padding in (0, 16))
    torch.testing.assert_close(padded, plain)
