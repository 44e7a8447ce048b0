# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0
"""Decoding with a proxy against a loop that runs the complete model for every candidate, and limiting cases."""

import itertools
from dataclasses import replace
from typing import Any

import pytest
import torch
from conftest import make_model

from trl_ext.decoding.guide_schedule import GuideSchedule
from trl_ext.generation_settings import GenerationSettings
from trl_ext.methods.proxy_rlhf.decision_process import DecisionProcess
from trl_ext.methods.proxy_rlhf.decoding.batch import complete
from trl_ext.methods.proxy_rlhf.decoding.candidates import choose, penalized_logits, propose
from trl_ext.methods.proxy_rlhf.decoding.per_row_rng import PerRowRNG
from trl_ext.methods.proxy_rlhf.decoding.walk import Walk
from trl_ext.methods.proxy_rlhf.losses import decision_logps
from trl_ext.methods.proxy_rlhf.model import ProxyModel
from trl_ext.methods.proxy_rlhf.policies import narrowed, proxy_logps
from trl_ext.models.backbone_and_head import BackboneAndHead


V = 60
PROMPTS = [[5, 9, 11, 3], [7, 2], [30, 31, 32, 33, 34, 35], [8]]
EOS = 1
REPEATED: dict[str, Any] = {"propose_rejected": True}


def make_proxy(model: Any, process: DecisionProcess, *, sharp: float = 3.0) -> ProxyModel:
    """A proxy with random weights; a new one accepts every candidate with probability one half."""
    torch.manual_seed(4)
    proxy = ProxyModel.for_model(model, process).eval()
    with torch.no_grad():
        proxy.actor[-1].weight.normal_(0, sharp / proxy.config.layer_sizes[-1] ** 0.5)
        if proxy.critic is not None:
            proxy.critic[-1].weight.normal_(0, 0.3)
    return proxy


def always(logit: float) -> Any:
    return lambda features: features.new_full(features.shape[:-1], logit, dtype=torch.float32)


@torch.no_grad()
def oracle(
    model: Any,
    accept_logits: Any,
    process: DecisionProcess,
    prompt: list[int],
    seed: int,
    length: int,
    greedy: bool = False,
) -> tuple[list[int], int, int, int]:
    """One completion, with a forward pass of the complete model per candidate; and examined, rejected, forced."""
    rng = PerRowRNG([seed], min(process.top_k, V), torch.device("cpu"))
    ids, examined, rejected, forced = list(prompt), 0, 0, 0
    backbone = model.get_base_model().model if hasattr(model, "get_base_model") else model.model
    for _ in range(length):
        order, uniform = rng.uniform()
        logits = model(torch.tensor([ids])).logits[0, -1].float() / process.temperature
        values, tokens = logits.topk(process.top_k)
        weights, total, kept = values.softmax(0).tolist(), 0.0, []
        for token, weight in zip(tokens.tolist(), weights, strict=True):
            if total < process.top_p:
                kept.append((token, weight))
            total += weight
        mass = sum(weight for _, weight in kept)
        if process.propose_rejected:  # each random number falls into the part of [0, 1] of one candidate
            ends = list(itertools.accumulate(weight / mass for _, weight in kept))
            columns = [next(c for c, end in enumerate(ends) if float(order[0, i]) < end) for i in range(len(kept))]
            kept = [kept[c] for c in columns]
        elif process.order == "sampled":
            arrivals = [-torch.log1p(-order[0, i]).item() / (w / mass) for i, (_, w) in enumerate(kept)]
            kept = [kept[i] for i in sorted(range(len(kept)), key=lambda i: arrivals[i])]
        kept = kept[: process.max_candidates or None]
        taken = None
        asked = len(kept) if len(kept) > 1 else 0
        for column, (token, _) in enumerate(kept[: asked - (process.forced == "last" and asked > 0)]):
            after = backbone(torch.tensor([[*ids, token]])).last_hidden_state[0, -1]
            before = backbone(torch.tensor([ids])).last_hidden_state[0, -1]
            embedded = model.get_input_embeddings().weight[token]
            feature = after if process.feature == "candidate" else torch.cat([before, embedded])
            logit = float(accept_logits(feature[None])[0])
            p = torch.sigmoid(torch.tensor(logit)).item()
            examined += 1
            if (p >= 0.5) if greedy else (float(uniform[0, column]) < p):
                taken = token
                break
            rejected += 1
        if taken is None:
            forced += asked > 0
            taken = kept[0 if process.forced == "first" else -1][0]
        ids.append(taken)
        if taken == EOS:
            break
    return ids[len(prompt) :], examined, rejected, forced


PROCESSES = [
    DecisionProcess(
        top_k=6, order=order, feature=feature, forced=forced, top_p=top_p, temperature=1.3, max_candidates=most
    )
    for order, feature, forced, (top_p, most) in itertools.product(
        ["sampled", "descending"], ["candidate", "context"], ["first", "last"], [(1.0, 0), (0.6, 0), (1.0, 3)]
    )
]
AGAIN = [replace(process, propose_rejected=True) for process in PROCESSES if process.order == "sampled"]


def name_of(process: DecisionProcess) -> str:
    order = "again" if process.propose_rejected else process.order
    return f"{order}-{process.feature}-{process.forced}-{process.top_p}-{process.max_candidates}"


@pytest.mark.parametrize("process", [*PROCESSES, *AGAIN], ids=name_of)
def test_completions_equal_those_of_the_oracle(process: DecisionProcess) -> None:
    """For batches with left padding and shared prompts, and any number of candidates in the first forward pass."""
    model = make_model(V)
    proxy = make_proxy(model, process)
    llm, seeds = BackboneAndHead(model), list(range(2 * len(PROMPTS)))
    expected = [oracle(model, proxy.accept_logits, process, PROMPTS[i // 2], i, 8) for i in seeds]
    for first, batch_size in [(0, 64), (0, 3)] if process.propose_rejected else [(0, 64), (2, 64), (1, 3), (6, 1)]:
        found = complete(
            llm, proxy, process, PROMPTS, seeds=seeds, max_new_tokens=8, eos=[EOS], batch_size=batch_size,
            first_candidates=first,
        )  # fmt: skip
        assert found.ids == [ids for ids, *_ in expected]
        counts = zip(found.examined.tolist(), found.rejected.tolist(), found.forced.tolist(), strict=True)
        assert list(counts) == [tuple(rest) for _, *rest in expected]
        assert found.ended == [ids[-1] == EOS for ids, *_ in expected]
    assert sum(rejected for _, _, rejected, _ in expected) > 10


def test_greedy_decisions() -> None:
    model, process = make_model(V), DecisionProcess(top_k=5, order="descending")
    proxy = make_proxy(model, process)
    found = complete(
        BackboneAndHead(model), proxy, process, PROMPTS, seeds=range(4), max_new_tokens=8, eos=[EOS], greedy=True
    )
    expected = [oracle(model, proxy.accept_logits, process, p, 0, 8, greedy=True)[0] for p in PROMPTS]
    assert found.ids == expected


def test_always_accepting_in_descending_order_is_greedy_decoding() -> None:
    model, process = make_model(V), DecisionProcess(top_k=5, order="descending")
    proxy = make_proxy(model, process)
    proxy.accept_logits = always(100.0)  # type: ignore[method-assign]
    found = complete(BackboneAndHead(model), proxy, process, PROMPTS, seeds=range(4), max_new_tokens=10, eos=[EOS])
    for prompt, ids in zip(PROMPTS, found.ids, strict=True):
        plain = model.generate(torch.tensor([prompt]), max_new_tokens=10, do_sample=False, eos_token_id=EOS)
        assert plain[0, len(prompt) :].tolist() == ids
    assert found.examined.tolist() == [len(ids) for ids in found.ids]
    assert not found.rejected.any()


@pytest.mark.parametrize("logit", [100.0, -100.0], ids=["always", "never"])
def test_always_accepting_in_sampled_order_is_truncated_sampling(logit: float) -> None:
    """By counts of 4,000 samples of one token; never accepting is the same, because the first is forced."""
    model = make_model(V)
    process = DecisionProcess(top_k=8, top_p=0.9, temperature=1.5, order="sampled")
    llm, n = BackboneAndHead(model), 4000
    walk = Walk(
        llm, always(logit), process, torch.tensor([PROMPTS[0]]), torch.ones(1, 4, dtype=torch.long), repeats=n,
        rng=PerRowRNG(list(range(n)), 8, torch.device("cpu")), first_candidates=2,
    )  # fmt: skip
    tokens = walk.step().tokens
    logits = model(torch.tensor([PROMPTS[0]])).logits[0, -1].float() / 1.5
    top, ids = logits.topk(8)
    p = top.softmax(0)
    p = torch.where(p.cumsum(0) - p < 0.9, p, torch.zeros(()))
    p = p / p.sum()
    share = torch.stack([(tokens == token).float().mean() for token in ids])
    error = (p * (1 - p) / n).sqrt()
    assert bool(((share - p).abs() <= 4 * error + 1e-6).all())


@pytest.mark.parametrize("fields", [{}, {"order": "descending"}, REPEATED, REPEATED | {"max_candidates": 3}], ids=str)
@pytest.mark.parametrize("forced", ["first", "last"])
def test_token_counts_match_their_log_probabilities(fields: dict[str, Any], forced: str) -> None:
    """By counts of 4,000 samples, forced tokens included; and the probabilities sum to 1."""
    model = make_model(V)
    process = DecisionProcess(top_k=6, forced=forced, **fields)
    proxy, llm, n = make_proxy(model, process), BackboneAndHead(model), 4000
    prompt = PROMPTS[2]
    walk = Walk(
        llm, proxy.accept_logits, process, torch.tensor([prompt]), torch.ones(1, 6, dtype=torch.long), repeats=n,
        rng=PerRowRNG(list(range(n)), 6, torch.device("cpu")),
        first_candidates=0 if process.propose_rejected else 3,
    )  # fmt: skip
    tokens = walk.step().tokens
    ids = model(torch.tensor([prompt])).logits[0, -1].topk(6).indices.tolist()
    [logps] = proxy_logps(llm, proxy, process, [prompt], [[[token] for token in ids]], pad_token_id=0)
    p = torch.cat(logps).exp()
    assert float(p.sum()) == pytest.approx(1, abs=1e-5)
    share = torch.stack([(tokens == token).float().mean() for token in ids])
    assert bool(((share - p).abs() <= 4 * (p * (1 - p) / n).sqrt() + 1e-6).all())
    [[[outside]]] = proxy_logps(llm, proxy, process, [prompt], [[[EOS if EOS not in ids else 0]]], pad_token_id=0)
    assert outside == -torch.inf


@pytest.mark.parametrize("fields", [{}, {"order": "descending"}, REPEATED, REPEATED | {"top_p": 0.6}], ids=str)
@pytest.mark.parametrize("feature", ["candidate", "context"])
def test_measured_kl_equals_log_probabilities(fields: dict[str, Any], feature: str) -> None:
    """The KL during generation equals log q of the finished completions minus the log-probability of the model."""
    model, process = make_model(V), DecisionProcess(top_k=6, feature=feature, **fields)
    proxy, llm = make_proxy(model, process), BackboneAndHead(model)
    found = complete(llm, proxy, process, PROMPTS, seeds=range(4), max_new_tokens=6, eos=[EOS], measure_every=1)
    logps = proxy_logps(llm, proxy, process, PROMPTS, [[ids] for ids in found.ids], pad_token_id=0, batch_size=3)
    for i, (prompt, ids) in enumerate(zip(PROMPTS, found.ids, strict=True)):
        base = model(torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1].float().log_softmax(-1)
        base_logps = base.gather(1, torch.tensor(ids)[:, None]).sum()
        assert float(found.kl[i]) == pytest.approx(float(logps[i][0].sum() - base_logps), abs=1e-3)


def test_kl_estimate_from_some_positions() -> None:
    """From every second position: twice the KL at these."""
    model, process = make_model(V), DecisionProcess(top_k=6)
    proxy, llm = make_proxy(model, process), BackboneAndHead(model)
    found = complete(llm, proxy, process, PROMPTS, seeds=range(4), max_new_tokens=7, measure_every=2)
    logps = proxy_logps(llm, proxy, process, PROMPTS, [[ids] for ids in found.ids], pad_token_id=0)
    for i, (prompt, ids) in enumerate(zip(PROMPTS, found.ids, strict=True)):
        base = model(torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1].float().log_softmax(-1)
        gaps = logps[i][0] - base.gather(1, torch.tensor(ids)[:, None])[:, 0]
        assert float(found.kl[i]) == pytest.approx(2 * float(gaps[1::2].sum()), abs=1e-3)


def test_max_length_limits_prompt_plus_completion() -> None:
    model, process = make_model(V), DecisionProcess(top_k=6)
    llm, proxy = BackboneAndHead(model), make_proxy(model, process)
    whole = complete(llm, proxy, process, PROMPTS, seeds=range(8), max_new_tokens=5)
    found = complete(llm, proxy, process, PROMPTS, seeds=range(8), max_new_tokens=5, max_length=7)
    lengths = [3, 3, 5, 5, 1, 1, 5, 5]  # prompts of 4, 2, 6 and 1 tokens
    assert found.ids == [ids[:n] for ids, n in zip(whole.ids, lengths, strict=True)]
    assert not any(found.ended)


@pytest.mark.parametrize(("first", "fields"), [(0, {}), (2, {}), (0, REPEATED)])
@pytest.mark.parametrize("feature", ["candidate", "context"])
def test_recorded_decisions(first: int, fields: dict[str, Any], feature: str) -> None:
    """Log-probabilities from the stored features equal the recorded ones, one per examined candidate."""
    model, process = make_model(V), DecisionProcess(top_k=6, feature=feature, **fields)
    proxy, llm = make_proxy(model, process), BackboneAndHead(model)
    found = complete(
        llm, proxy, process, PROMPTS, seeds=range(8), max_new_tokens=7, eos=[EOS], record=True, batch_size=3,
        first_candidates=first,
    )  # fmt: skip
    kept = found.decisions
    assert kept is not None
    assert torch.bincount(kept.response, minlength=8).tolist() == found.examined.tolist()
    assert bool((kept.response.diff() >= 0).all())
    rejected = torch.zeros(8, dtype=torch.long).index_add(0, kept.response, (~kept.accepted).long())
    assert rejected.tolist() == found.rejected.tolist()
    assert kept.features.dtype == torch.bfloat16
    output = proxy(kept.features)
    torch.testing.assert_close(decision_logps(output.logits, kept.accepted), kept.logps, rtol=0, atol=1e-5)


def test_a_candidate_that_is_proposed_again_is_decided_about_again() -> None:
    """Of two candidates and two proposals, half of the rejections of an equally likely one meet it a second time."""
    model, process = make_model(V), DecisionProcess(top_k=2, temperature=1e4, **REPEATED)
    proxy, llm = make_proxy(model, process), BackboneAndHead(model)
    n = 400
    found = complete(llm, proxy, process, [PROMPTS[0]], seeds=range(n), max_new_tokens=1, record=True)
    assert found.decisions is not None
    features, response = found.decisions.features, found.decisions.response
    second = (response[1:] == response[:-1]).nonzero().squeeze(1)
    assert len(second) > 50
    same = (features[second] == features[second + 1]).all(1).float().mean()
    assert 0.3 < float(same) < 0.7
    never = complete(llm, proxy, replace(process, propose_rejected=False), [PROMPTS[0]], seeds=range(n),
                     max_new_tokens=1, record=True).decisions  # fmt: skip
    assert never is not None
    second = (never.response[1:] == never.response[:-1]).nonzero().squeeze(1)
    assert len(second) > 50 and not (never.features[second] == never.features[second + 1]).all(1).any()


def test_what_does_not_go_with_repeated_proposals() -> None:
    model, process = make_model(V), DecisionProcess(top_k=6, **REPEATED)
    proxy, llm = make_proxy(model, process), BackboneAndHead(model)
    common: dict[str, Any] = {"seeds": range(4), "max_new_tokens": 3}
    with pytest.raises(ValueError, match=r"`first_candidates` .2. saves forward passes"):
        complete(llm, proxy, process, PROMPTS, first_candidates=2, **common)
    with pytest.raises(ValueError, match="asked about every token: leave out `proxy_every`"):
        complete(llm, proxy, process, PROMPTS, schedule=GuideSchedule(2), **common)
    with pytest.raises(ValueError, match=r"'always'.*a rejected candidate may be proposed again"):
        complete(llm, proxy, process, PROMPTS, cuda_graphs="always", **common)
    with pytest.raises(ValueError, match=r"samples candidates with replacement.*set order='sampled'"):
        narrowed(process, GenerationSettings(1, temperature=0))


@pytest.mark.parametrize("fields", [{}, REPEATED], ids=str)
def test_no_decision_with_one_candidate(fields: dict[str, Any]) -> None:
    model, process = make_model(V), DecisionProcess(top_k=6, top_p=1e-6, **fields)
    found = complete(
        BackboneAndHead(model), make_proxy(model, process), process, PROMPTS, seeds=range(4), max_new_tokens=5,
        eos=[EOS], record=True,
    )  # fmt: skip
    assert not found.examined.any()
    assert not found.asked.any()
    assert found.decisions is not None
    assert len(found.decisions) == 0


def test_one_forward_pass_per_token() -> None:
    """One for the prompt, then one per token for all candidates, or two if the first few are all rejected."""
    model, process = make_model(V), DecisionProcess(top_k=6, order="descending")
    llm = BackboneAndHead(model)
    for logit, first, calls in [(100.0, 0, 1), (-100.0, 6, 1), (100.0, 2, 1), (-100.0, 2, 2)]:
        ids = torch.tensor([PROMPTS[0]])
        rng = PerRowRNG([0], 6, torch.device("cpu"))
        walk = Walk(llm, always(logit), process, ids, torch.ones_like(ids), rng=rng, first_candidates=first)
        before = walk.tree.calls
        for _ in range(5):
            walk.step()
        assert walk.tree.calls - before == 5 * calls
        assert walk.tree.form == "shared"


@pytest.mark.parametrize("measure", [False, True])
def test_the_feature_context_costs_no_forward_pass_of_candidates(measure: bool) -> None:
    """One forward pass over one token for each row and token, also where the KL is measured."""
    model, process = make_model(V), DecisionProcess(top_k=6, feature="context")
    ids, rng = torch.tensor([PROMPTS[0]]), PerRowRNG([0, 1], 6, torch.device("cpu"))
    llm, proxy = BackboneAndHead(model), make_proxy(model, process)
    walk = Walk(llm, proxy.accept_logits, process, ids, torch.ones_like(ids), repeats=2, rng=rng, record=True)
    seen: list[int] = []
    model.model.register_forward_hook(lambda module, args, output: seen.append(output.last_hidden_state.shape[1]))
    for _ in range(5):
        walk.step(measure=measure)
    assert seen == [1] * 5


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_models_without_a_shared_cache(attention: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Recomputing the sequences gives the same completions."""
    model, process = make_model(V, attn_implementation=attention), DecisionProcess(top_k=4)
    proxy = make_proxy(model, process)
    seeds = range(4)
    expected = complete(
        BackboneAndHead(model), proxy, process, PROMPTS, seeds=seeds, max_new_tokens=5, first_candidates=2
    )
    monkeypatch.setattr("trl_ext.decoding.token_tree.shared_cache_support", lambda *_: (set(), "for the test"))
    found = complete(
        BackboneAndHead(model), proxy, process, PROMPTS, seeds=seeds, max_new_tokens=5, first_candidates=2
    )
    assert found.ids == expected.ids


def test_candidates_in_descending_order_and_base_log_probabilities() -> None:
    logits = torch.randn(3, V, generator=torch.Generator().manual_seed(0))
    found = propose(logits, DecisionProcess(top_k=4, temperature=0.5, order="descending"), None)
    assert found.tokens.tolist() == logits.topk(4).indices.tolist()
    torch.testing.assert_close(found.base_logps, logits.log_softmax(1).gather(1, found.tokens))
    torch.testing.assert_close(found.weights, (logits.topk(4).values / 0.5).softmax(1))
    # A penalty changes who is proposed, and not what the model thinks of them.
    seen = logits.topk(2).indices
    found = propose(logits, DecisionProcess(top_k=4, repetition_penalty=1.7, order="descending"), None, seen)
    assert bool((found.tokens != logits.topk(4).indices).any()) and bool(torch.isin(found.tokens, seen).any())
    torch.testing.assert_close(found.base_logps, logits.log_softmax(1).gather(1, found.tokens))


def test_choose() -> None:
    accepted = torch.tensor([[0, 1, 1], [0, 0, 0], [1, 1, 1], [0, 0, 1]]).bool()
    asked = torch.tensor([[1, 1, 1], [1, 1, 1], [0, 0, 0], [1, 1, 0]]).bool()
    valid = torch.tensor([[1, 1, 1], [1, 1, 1], [1, 0, 0], [1, 1, 1]]).bool()
    choice, examined, forced = choose(accepted, asked, valid, "first")
    assert choice.tolist() == [1, 0, 0, 0]
    assert examined.int().tolist() == [[1, 1, 0], [1, 1, 1], [0, 0, 0], [1, 1, 0]]
    assert forced.tolist() == [False, True, False, True]
    assert choose(accepted, asked, valid, "last")[0].tolist() == [1, 2, 0, 2]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"top_k": 1}, "nothing to decide"),
        ({"top_k": 0}, "at least 2"),
        ({"max_candidates": 1}, "nothing to decide"),
        ({"temperature": 0.0}, "greedy"),
        ({"order": "random"}, "one of sampled, descending"),
        ({"feature": "logits"}, "one of candidate, context"),
        ({"forced": "best"}, "one of first, last"),
        ({"propose_rejected": True, "order": "descending"}, "with replacement, and order='descending' does not"),
        ({"top_p": 0.0}, "top_p"),
    ],
)
def test_invalid_processes(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DecisionProcess(**changes)


@pytest.mark.parametrize("order", ["sampled", "descending"])
@pytest.mark.parametrize("feature", ["candidate", "context"])
def test_token_tied_with_the_last_candidate_has_a_probability(order: str, feature: str) -> None:
    """Rounding, so the batch, decides which of two tied tokens is a candidate; a less likely one stays impossible."""
    model = make_model(V)
    process = DecisionProcess(top_k=4, order=order, feature=feature)
    proxy = make_proxy(model, process)
    best = model(torch.tensor([PROMPTS[0]])).logits[0, -1].topk(6).indices.tolist()
    with torch.no_grad():
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())  # no longer the embedding
        model.lm_head.weight[best[4]] = model.lm_head.weight[best[3]]
    llm, texts = BackboneAndHead(model), [[best[i]] for i in (3, 4, 5)]
    [[one, other, outside]] = proxy_logps(llm, proxy, process, PROMPTS[:1], [texts], pad_token_id=0)
    assert bool(torch.isfinite(one)) and bool(torch.isfinite(other)) and float(outside) == -torch.inf


def tied_model(
    process: DecisionProcess, prompts: list[list[int]], dtype: torch.dtype = torch.float32
) -> tuple[Any, list, list]:
    """
    A model in which, after each prompt, the token after the last candidate has the very logit of that one.

    Returns:
        The model, and for each prompt its last candidate and the tokens from that one's equal on.
    """
    model = make_model(V).to(dtype)
    llm = BackboneAndHead(model)
    with torch.no_grad():
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())  # no longer the embedding
        lasts, others, used = [], [], set()
        for prompt in prompts:
            hidden = llm.backbone(torch.tensor([prompt])).last_hidden_state[:, -1]
            ids = torch.tensor([prompt])
            found = propose(llm.logits(hidden), process, torch.full((1, process.top_k), 0.5), ids)
            valid = found.weights.masked_fill(~found.valid, torch.inf)
            last = int(found.tokens[0, valid.argmin()])
            scores = penalized_logits(llm.logits(hidden), process, ids)[0]
            below = [t for t in scores.argsort(descending=True).tolist() if scores[t] < scores[last]]
            other = next(t for t in below if t not in used and t not in prompt)
            assert not used & {last, other}  # one prompt's ties would be another's
            used |= {last, other}
            # A penalised last candidate is less than its logit says; its equal has that logit without a penalty.
            ratio = float(scores[last] / llm.logits(hidden)[0, last])
            model.lm_head.weight[other] = model.lm_head.weight[last] * ratio
            lasts.append(last)
            others.append([other, *[t for t in below if t != other]])
    return model, lasts, others


def first_logps(
    model: Any, process: DecisionProcess, prompts: list[list[int]], tokens: list[list[int]]
) -> list[list[float]]:
    proxy, groups = make_proxy(model, process), [[[token] for token in some] for some in tokens]
    found = proxy_logps(BackboneAndHead(model), proxy, process, prompts, groups, pad_token_id=0)
    return [[float(one) for one in group] for group in found]


TIES = {
    "plain": {},
    "descending": {"order": "descending"},
    "top_p": {"top_p": 0.7, "top_k": 12},
    "the last is forced": {"forced": "last"},
    "descending, the last is forced": {"order": "descending", "forced": "last"},
    "max_candidates": {"order": "descending", "max_candidates": 3},
    "temperature": {"temperature": 0.5},
}


@pytest.mark.parametrize("settings", TIES.values(), ids=TIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_ties_in_every_process(settings: dict[str, Any], dtype: torch.dtype) -> None:
    """A token tied with the last candidate has that one's probability; a less likely token stays impossible."""
    process = DecisionProcess(**{"top_k": 4, **settings})
    model, [last], [others] = tied_model(process, PROMPTS[:1], dtype)
    with torch.no_grad():
        logits = BackboneAndHead(model).logits(model.model(torch.tensor(PROMPTS[:1])).last_hidden_state[:, -1])
    found = propose(logits, process, torch.full((1, process.top_k), 0.5))
    assert len({last, others[0]} & set(found.tokens[found.valid].tolist())) == 1  # one of the two is left out
    [[one, other, far]] = first_logps(model, process, PROMPTS[:1], [[last, others[0], others[-1]]])
    assert one > -torch.inf and other > -torch.inf and far == -torch.inf
    if process.forced == "last" and process.order == "descending":
        # Nobody asks about the last one: what is left after the others rejected, which are the same for both.
        assert other == pytest.approx(one, abs=1e-3)


@pytest.mark.parametrize("order", ["sampled", "descending"])
def test_the_repetition_penalty_is_about_the_text_without_its_padding(order: str) -> None:
    """A row has the log-probabilities that it has alone, also of the token that pads it in a batch."""
    short, long = [5, 6, 7], [9, 8, 7, 6, 5, 10, 11, 12]
    pad = int(make_model(V)(torch.tensor([short])).logits[0, -1].argmax())
    assert pad not in short
    process = DecisionProcess(top_k=4, order=order, repetition_penalty=1.5)
    llm, proxy = BackboneAndHead(make_model(V)), make_proxy(make_model(V), process)
    texts = [[[pad, 20, pad]], [[pad, 21, 22]]]
    together = proxy_logps(llm, proxy, process, [short, long], texts, pad_token_id=pad)
    for prompt, text, [found] in zip((short, long), texts, together, strict=True):
        [[alone]] = proxy_logps(llm, proxy, process, [prompt], [text], pad_token_id=pad)
        torch.testing.assert_close(found, alone, rtol=0, atol=1e-4)
    assert together[0][0][0] > -torch.inf


@pytest.mark.parametrize("order", ["sampled", "descending"])
@pytest.mark.parametrize("penalty", [1.5, 0.7])
def test_ties_compare_penalized_logits(order: str, penalty: float) -> None:
    """With a repetition penalty, the model's own probabilities may be tied where the penalized logits are not."""
    prompt = PROMPTS[0]
    plain = make_model(V)(torch.tensor([prompt])).logits[0, -1]
    process = DecisionProcess(top_k=4, order=order, repetition_penalty=penalty)
    model, [last], [others] = tied_model(process, [prompt])
    [[one, other, far]] = first_logps(model, process, [prompt], [[last, others[0], others[-1]]])
    assert one > -torch.inf and other > -torch.inf and far == -torch.inf
    # A token of the prompt with the last candidate's own logit, which the penalty puts behind it or before it.
    model = make_model(V)
    with torch.no_grad():
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
        best = [t for t in plain.argsort(descending=True).tolist() if t not in prompt]
        last = best[3]
        assert plain[last] > 0
        for token in prompt:  # out of the way
            model.lm_head.weight[token] = -model.lm_head.weight[best[0]]
        model.lm_head.weight[prompt[0]] = model.lm_head.weight[last]
    ids = [prompt[0], last]
    [[repeated, fresh]] = first_logps(model, process, [prompt], [ids])
    if penalty > 1:
        assert repeated == -torch.inf and fresh > -torch.inf
    else:
        assert repeated > -torch.inf and fresh == -torch.inf


def test_rows_with_and_without_ties_in_one_batch() -> None:
    """Each row gives the same result as alone: a tie in one of them does not affect the others."""
    process = DecisionProcess(top_k=4, order="descending")
    model, lasts, others = tied_model(process, PROMPTS[:2])
    llm, proxy = BackboneAndHead(model), make_proxy(model, process)
    best = [int(model(torch.tensor([prompt])).logits[0, -1].argmax()) for prompt in PROMPTS[:2]]
    tokens = [[best[0], others[0][0], others[0][-1], lasts[0]], [others[1][-1], lasts[1], others[1][0], best[1]]]
    together = first_logps(model, process, PROMPTS[:2], tokens)
    for prompt, some, found in zip(PROMPTS, tokens, together, strict=False):
        for token, logp in zip(some, found, strict=True):
            [[alone]] = proxy_logps(llm, proxy, process, [prompt], [[[token]]], pad_token_id=0)
            assert logp == pytest.approx(float(alone), abs=1e-4) or logp == float(alone) == -torch.inf
    assert [[logp > -torch.inf for logp in group] for group in together] == [
        [True, True, False, True],
        [False, True, True, True],
    ]


@pytest.mark.parametrize("behind", [0.0005, 0.002])
def test_tie_tolerance(behind: float) -> None:
    """In float32, less than a thousandth in the logit."""
    process = DecisionProcess(top_k=4, order="descending")
    model, [last], [others] = tied_model(process, PROMPTS[:1])
    logit = float(model(torch.tensor(PROMPTS[:1])).logits[0, -1, last])
    with torch.no_grad():
        model.lm_head.weight[others[0]] *= 1 - behind / logit
    [[found]] = first_logps(model, process, PROMPTS[:1], [others[:1]])
    assert (found > -torch.inf) == (behind < 0.001)
