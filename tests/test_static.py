# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0
"""The room of fixed size and its loop against the ordinary tree and transformers' own `generate`."""

import copy
import pickle
from typing import Any

import pytest
import torch
from conftest import make_model
from test_tree import CONFIGS, PROMPTS, SIBLINGS, backbone, close, padded, siblings_by_loop
from transformers import LogitsProcessor, MaxTimeCriteria

from trl_ext.generation_settings import GenerationSettings
from trl_ext.replay import Loops, Replay, loops_of
from trl_ext.sampling import generate
from trl_ext.static_generate import BUCKET, Unavailable, forget_loops, static_generate
from trl_ext.static_support import static_fault
from trl_ext.static_tree import STATIC, StaticTree
from trl_ext.tree import Tree


SERVED = [name for name in CONFIGS if name not in ("bloom", "mamba")]


# ---------------------------------------------------------------------------------------------------------- the room


@pytest.mark.parametrize("name", SERVED)
def test_siblings_are_exact(name: str) -> None:
    """As in one uncached forward a sibling, whatever the padding; and again after one was kept."""
    model = backbone(name)
    assert not static_fault(model)
    ids, mask = padded(PROMPTS)
    siblings = torch.tensor(SIBLINGS)
    tree = StaticTree(model, len(PROMPTS), ids.shape[1] + siblings.shape[1] + 3)
    tree.start(ids, mask)
    assert close(tree.branch(siblings), siblings_by_loop(model, PROMPTS, SIBLINGS))
    choice = torch.tensor([1, 0, 2, 1][: len(PROMPTS)]) % siblings.shape[1]
    tree.keep(choice)
    longer = [[*p, s[c]] for p, s, c in zip(PROMPTS, SIBLINGS, choice.tolist(), strict=True)]
    assert close(tree.branch(siblings), siblings_by_loop(model, longer, SIBLINGS))
    after = torch.tensor([[7]] * len(PROMPTS))
    found = tree.branch(siblings, after_N1=after)
    assert close(found, siblings_by_loop(model, [[*p, 7] for p in longer], SIBLINGS))
    assert int(tree.length_1) == ids.shape[1] + 2


@pytest.mark.parametrize("name", ["llama", "mistral sliding", "gemma2"])
def test_many_steps_equal_the_ordinary_tree(name: str) -> None:
    model = backbone(name)
    ids, mask = padded(PROMPTS)
    tree, room = Tree(model), StaticTree(model, len(PROMPTS), 64)
    assert close(room.start(ids, mask), tree.start(ids, mask)[:, -1])
    generator = torch.Generator().manual_seed(0)
    for _ in range(12):
        siblings = torch.randint(3, 60, (len(PROMPTS), 5), generator=generator)
        assert close(room.branch(siblings), tree.branch(siblings))
        choice = torch.randint(5, (len(PROMPTS),), generator=generator)
        room.keep(choice)
        tree.keep(choice)
        token = torch.randint(3, 60, (len(PROMPTS), 1), generator=generator)
        assert close(room.append(token), tree.append(token)[:, -1])


def test_a_room_serves_one_batch_after_another() -> None:
    model = backbone("llama")
    ids, mask = padded(PROMPTS)
    room = StaticTree(model, len(PROMPTS), 64)
    room.start(ids.flip(0), mask.flip(0))
    room.append(torch.tensor([[5]] * len(PROMPTS)))
    room.start(ids, mask)
    assert close(room.branch(torch.tensor(SIBLINGS)), siblings_by_loop(model, PROMPTS, SIBLINGS))


def test_attention_is_put_back_even_after_an_error() -> None:
    model = backbone("llama")
    kept = model.config._attn_implementation
    room = StaticTree(model, 1, 32)
    room.start(torch.tensor([[3, 4]]), torch.ones(1, 2))
    with pytest.raises(IndexError):
        room.append(torch.tensor([[10_000]]))
    assert model.config._attn_implementation == kept != STATIC


def test_models_that_cannot_are_named() -> None:
    assert static_fault(backbone("bloom")) and static_fault(backbone("mamba"))


def test_a_model_that_computes_something_else_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """A mask that lets siblings see one another must not pass."""
    mask = StaticTree._mask

    def leaky(self: Any, q: int, after: int, kind: str) -> torch.Tensor:
        found = mask(self, q, after, kind)
        column = self.column_S
        new = (column >= self.length_1) & (column < self.length_1 + q)
        return found.masked_fill(new, 0.0)

    monkeypatch.setattr(StaticTree, "_mask", leaky)
    assert "something else" in static_fault(backbone("llama"))


# ---------------------------------------------------------------------------------------------------------- the loop


def both(model: Any, ids: torch.Tensor, mask: torch.Tensor, **kwargs: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """What `generate` makes with its own loop and with ours."""
    found = []
    for extra in ({}, {"custom_generate": static_generate}):
        torch.manual_seed(0)
        found.append(model.generate(ids, attention_mask=mask, **kwargs, **extra))
    return found[0], found[1]


@pytest.mark.parametrize("new", [1, 7, 40])
def test_greedy_tokens_are_those_of_generate(new: int) -> None:
    model = make_model(60, initializer_range=0.3)
    ids, mask = padded(PROMPTS)
    expected, found = both(model, ids, mask, max_new_tokens=new, do_sample=False)
    assert torch.equal(found, expected)


def test_rows_end_where_they_end() -> None:
    """A token that greedy decoding meets is made an end: padding follows it, and the longest row sets the width."""
    model = make_model(60, initializer_range=0.3)
    ids, mask = padded(PROMPTS)
    free, _ = both(model, ids, mask, max_new_tokens=40, do_sample=False, eos_token_id=None)
    ends = [int(free[0, ids.shape[1] + 3]), int(free[1, ids.shape[1] + 20])]
    expected, found = both(model, ids, mask, max_new_tokens=40, do_sample=False, eos_token_id=ends, pad_token_id=0)
    assert torch.equal(found, expected)
    assert (found[0, ids.shape[1] + 4 :] == 0).all()


def test_prompts_of_one_token() -> None:
    model = make_model(60, initializer_range=0.3)
    ids = torch.tensor([[5], [9]])
    expected, found = both(model, ids, torch.ones_like(ids), max_new_tokens=9, do_sample=False)
    assert torch.equal(found, expected)


def test_draws_are_those_of_the_ordinary_loop(tiny_model: Any, tiny_tokenizer: Any) -> None:
    """The same chance, so the same tokens; K answers to a prompt, of prompts of several lengths."""
    for changes in ({}, {"top_k": 5}, {"top_p": 0.8, "temperature": 0.7}, {"min_p": 0.1}):
        found = []
        for wanted in ("never", "always"):
            torch.manual_seed(0)
            settings = GenerationSettings(num_generations=3, max_completion_length=20, cuda_graphs=wanted, **changes)
            answers = generate(tiny_model, tiny_tokenizer, PROMPTS, settings)
            found.append([[c.ids for c in group] for group in answers])
        assert found[0] == found[1]


def test_sampling_of_transformers_has_the_same_distribution() -> None:
    """It draws by another rule, so the frequencies of the first token are compared with its probabilities."""
    model = make_model(12)
    ids = torch.tensor([[3, 4, 5]]).repeat(4000, 1)
    torch.manual_seed(0)
    found = model.generate(ids, max_new_tokens=1, do_sample=True, top_k=0, custom_generate=static_generate)
    with torch.no_grad():
        expected = model(ids[:1]).logits[0, -1].softmax(-1)
    frequencies = torch.bincount(found[:, -1], minlength=12) / len(ids)
    assert (frequencies - expected).abs().max() < 0.03


def test_a_loop_is_kept_for_the_same_sizes_and_follows_weights() -> None:
    model = make_model(60, initializer_range=0.3)
    ids, mask = padded(PROMPTS)
    both(model, ids, mask, max_new_tokens=5, do_sample=False)
    [loop] = loops_of(model)._loops.values()
    both(model, ids[:, -3:], mask[:, -3:], max_new_tokens=6, do_sample=False)  # another bucket would be another loop
    assert list(loops_of(model)._loops.values()) == [loop] and loop.tree.columns == BUCKET
    with torch.no_grad():
        model.lm_head.weight.mul_(-1)  # training changes weights where they are
    expected, found = both(model, ids, mask, max_new_tokens=5, do_sample=False)
    assert torch.equal(found, expected)
    model.lm_head.weight = torch.nn.Parameter(torch.randn_like(model.lm_head.weight))  # and this elsewhere
    expected, found = both(model, ids, mask, max_new_tokens=5, do_sample=False)
    assert torch.equal(found, expected)
    assert len(loops_of(model)._loops) == 2
    forget_loops(model)
    assert not loops_of(model)._loops


def test_adapters_make_a_difference() -> None:
    from peft import LoraConfig, get_peft_model

    lora = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    model = get_peft_model(make_model(60, initializer_range=0.3), lora).eval()
    ids, mask = padded(PROMPTS)
    adapted, found = both(model, ids, mask, max_new_tokens=8, do_sample=False)
    assert torch.equal(found, adapted)
    with model.disable_adapter():
        bare, found = both(model, ids, mask, max_new_tokens=8, do_sample=False)
    assert torch.equal(found, bare) and not torch.equal(bare, adapted)


class _Looks(LogitsProcessor):
    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return scores


@pytest.mark.parametrize(
    ("kwargs", "told"),
    [
        ({"logits_processor": [_Looks()]}, "_Looks looks at the text"),
        ({"stopping_criteria": [MaxTimeCriteria(60.0)]}, "MaxTimeCriteria looks at the text"),
        ({"repetition_penalty": 1.5}, "RepetitionPenaltyLogitsProcessor looks"),
        ({"return_dict_in_generate": True}, "returns tokens alone"),
        ({"num_beams": 2}, "no beam search"),
    ],
)
def test_what_it_cannot_do_is_said(kwargs: dict[str, Any], told: str) -> None:
    model = make_model(60)
    ids = torch.tensor([[3, 4]])
    with pytest.raises(Unavailable, match=told):
        model.generate(ids, max_new_tokens=2, do_sample=False, custom_generate=static_generate, **kwargs)


def test_always_is_an_error_where_it_cannot_be(tiny_model: Any, tiny_tokenizer: Any) -> None:
    settings = GenerationSettings(num_generations=1, max_completion_length=4, repetition_penalty=1.5)
    always = GenerationSettings(
        num_generations=1, max_completion_length=4, repetition_penalty=1.5, cuda_graphs="always"
    )
    assert generate(tiny_model, tiny_tokenizer, PROMPTS, settings)
    with pytest.raises(ValueError, match="'always', but `repetition_penalty`"):
        generate(tiny_model, tiny_tokenizer, PROMPTS, always)
    with pytest.raises(ValueError, match="cuda_graphs must be one of"):
        GenerationSettings(cuda_graphs="sometimes")


def test_what_a_models_own_config_adds_is_met_by_the_ordinary_loop(
    tiny_model: Any, tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU, where the loop is tried by itself: here it is asked for."""
    from trl_ext import static_generate as module

    tiny_model.generation_config.no_repeat_ngram_size = 2
    settings = GenerationSettings(num_generations=1, temperature=0.0, max_completion_length=12)
    expected = generate(tiny_model, tiny_tokenizer, PROMPTS, settings)
    tried = []
    monkeypatch.setattr(
        "trl_ext.sampling._in_a_fixed_room",
        lambda *args: tried.append(1) or module.sequences(*args[:4], settings, *args[5:]),
    )
    found = generate(tiny_model, tiny_tokenizer, PROMPTS, settings)
    assert tried and [g[0].ids for g in found] == [g[0].ids for g in expected]


# --------------------------------------------------------------------------------------------------------- keeping


class _Sized:
    def __init__(self, nbytes: int) -> None:
        self.nbytes = nbytes


def test_loops_give_way_by_number_and_by_size() -> None:
    loops = Loops(most=2, idle=10)
    for key in "abc":
        loops.get(key, lambda: _Sized(1))
    assert list(loops._loops) == ["b", "c"]
    loops.get("b", lambda: pytest.fail("it was kept"))
    loops.get("large", lambda: _Sized(100))
    assert list(loops._loops) == ["b", "large"]
    loops.get("last", lambda: _Sized(1))  # what is idle by then is too much
    assert list(loops._loops) == ["last"]


def test_copies_of_a_model_have_no_loops() -> None:
    model = make_model(60)
    loops_of(model).get("key", lambda: _Sized(1))
    assert not loops_of(copy.deepcopy(model))._loops
    assert not pickle.loads(pickle.dumps(loops_of(model)))._loops
    assert loops_of(model)._loops


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: elsewhere a replay is a call")
def test_a_recording_changes_nothing_and_replays_what_was_recorded() -> None:
    count = torch.zeros(1, device="cuda")
    drawn = torch.zeros(1, device="cuda")

    def step() -> None:
        count.add_(1)
        drawn.copy_(torch.rand(1, device="cuda"))

    torch.manual_seed(0)
    expected = [torch.rand(1, device="cuda").item() for _ in range(3)]
    torch.manual_seed(0)
    replay, found = Replay(step, [count, drawn], torch.device("cuda")), []
    for _ in range(3):
        replay()
        found.append(drawn.item())
    assert count.item() == 3
    assert len(set(found)) == 3 and found[0] == pytest.approx(expected[0])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_graphs_equal_generate() -> None:
    model = make_model(60, initializer_range=0.3).cuda()
    ids, mask = (x.cuda() for x in padded(PROMPTS))
    for _ in range(2):
        expected, found = both(model, ids, mask, max_new_tokens=30, do_sample=False)
        assert torch.equal(found, expected)
