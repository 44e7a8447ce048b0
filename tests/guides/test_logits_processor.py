# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0
"""The logits processor that adds up guides, against its formula as plain Python loops."""

import math
from typing import Any

import pytest
import torch

from trl_ext.decoding.guide import Guide, GuideContext
from trl_ext.guides.base_guide import BaseGuide, FunctionGuide, as_guide
from trl_ext.guides.logits_processor import GuidedLogitsProcessor
from trl_ext.models.backbone_and_head import BackboneAndHead


V = 30
PROMPTS = torch.tensor([[5, 6, 7], [8, 9, 10], [11, 12, 13], [0, 0, 14]])


@pytest.fixture
def logits_NV() -> torch.Tensor:
    return 2 * torch.randn(4, V, generator=torch.Generator().manual_seed(0))


def by_remainder(context: GuideContext, candidates_Nk: torch.Tensor) -> torch.Tensor:
    """A score that depends on the text and on the candidate."""
    return ((3 * candidates_Nk + context.ids_NS.sum(1, keepdim=True)) % 7).float()


class TwoHeads(BaseGuide):
    heads = ("even", "small")

    def score(self, context: GuideContext, candidates_Nk: torch.Tensor) -> torch.Tensor:
        return torch.stack([(candidates_Nk % 2 == 0).float(), -candidates_Nk.float() / 10], -1)


def remainder_score(row: list[int], a: int) -> float:
    return float((3 * a + sum(row)) % 7)


def expected(
    logits_V: torch.Tensor, scores: dict[str, Any], weights: dict[str, float], k: int, *, only: bool, min_p: float = 0
) -> list[float]:
    """Probability of each token: logits of the k likeliest plus weight times score minus its mean over them."""
    logits = logits_V.tolist()
    candidates = sorted(range(V), key=lambda a: -logits[a])[: k or V]
    candidates = [a for a in candidates if logits[a] >= max(logits) + (math.log(min_p) if min_p else -math.inf)]
    new = dict.fromkeys(range(V), -math.inf) if only else dict(enumerate(logits))
    for a in candidates:
        new[a] = logits[a]
        for name, score in scores.items():
            mean = sum(score(b) for b in candidates) / len(candidates)
            new[a] += weights[name] * (score(a) - mean)
    total = sum(math.exp(x) for x in new.values())
    return [math.exp(new[a]) / total for a in range(V)]


@pytest.mark.parametrize(("k", "only", "min_p"), [(6, False, 0), (6, True, 0), (0, False, 0), (12, True, 0.2)])
def test_the_formula(logits_NV: torch.Tensor, k: int, only: bool, min_p: float) -> None:
    """Two guides with three heads, for rows with and without padding."""
    guides = {"r": by_remainder, "two": TwoHeads()}
    weights = {"r": 0.7, "two/even": -1.5, "small": 0.4}
    processor = GuidedLogitsProcessor(
        guides, weights, k, candidates_only=only, min_p=min_p, attention_mask=(PROMPTS != 0).long()
    )
    assert processor.heads == ("r", "two/even", "two/small")
    found = processor(PROMPTS, logits_NV).softmax(-1)  # type: ignore[arg-type]
    for n, row in enumerate(PROMPTS.tolist()):
        scores = {
            "r": lambda a, row=row: remainder_score(row, a),
            "even": lambda a: float(a % 2 == 0),
            "small": lambda a: -a / 10,
        }
        wanted = expected(logits_NV[n], scores, {"r": 0.7, "even": -1.5, "small": 0.4}, k, only=only, min_p=min_p)
        assert found[n].tolist() == pytest.approx(wanted, abs=1e-6)


def test_candidates_only_is_the_softmax_of_the_sum(logits_NV: torch.Tensor) -> None:
    """Centring has no effect then: softmax(logit + w s) over the candidates. Without it, other tokens keep logits."""
    found = GuidedLogitsProcessor(by_remainder, 2.0, 5, candidates_only=True)(PROMPTS[:3], logits_NV[:3])
    for n in range(3):
        top = logits_NV[n].topk(5)
        raw = [float(x) + 2 * remainder_score(PROMPTS[n].tolist(), int(a)) for x, a in zip(*top, strict=True)]
        wanted = torch.tensor(raw).softmax(0)
        torch.testing.assert_close(found[n].softmax(0)[top.indices], wanted)
    others = GuidedLogitsProcessor(by_remainder, 2.0, 5)(PROMPTS[:3], logits_NV[:3])
    assert (others == logits_NV[:3]).sum() >= 3 * (V - 5)
    # Without weights it is top-k sampling, and zero weights of some rows leave their candidates as they are.
    plain = GuidedLogitsProcessor(by_remainder, [0.0, 0.0, 1.0], 5, candidates_only=True)(PROMPTS[:3], logits_NV[:3])
    top = logits_NV[0].topk(5)
    assert torch.equal(plain[0, top.indices], top.values) and int((plain[0] > -torch.inf).sum()) == 5
    none = GuidedLogitsProcessor(by_remainder, 0.0, 5, candidates_only=True)(PROMPTS[:3], logits_NV[:3])
    assert torch.equal(none[0], plain[0])


def test_weights_per_row_and_sign(logits_NV: torch.Tensor) -> None:
    """Each row is guided by its own weight; another sign guides the other way."""
    weights = [2.0, -2.0, 0.0, 1.0]
    mask = (PROMPTS != 0).long()
    found = GuidedLogitsProcessor(by_remainder, weights, 8, attention_mask=mask)(PROMPTS, logits_NV)
    for n, weight in enumerate(weights):
        one = GuidedLogitsProcessor(by_remainder, weight, 8, attention_mask=mask[n : n + 1])
        torch.testing.assert_close(found[n : n + 1], one(PROMPTS[n : n + 1], logits_NV[n : n + 1]))
    up, down = (
        GuidedLogitsProcessor(by_remainder, w, 8)(PROMPTS[:1], logits_NV[:1]) - logits_NV[:1] for w in (1.0, -1.0)
    )
    torch.testing.assert_close(up, -down)
    candidates = logits_NV[0].topk(8).indices
    scores = torch.tensor([remainder_score(PROMPTS[0].tolist(), int(a)) for a in candidates])
    assert float(up[0, candidates[scores.argmax()]]) > 0 > float(up[0, candidates[scores.argmin()]])


def test_excluded_and_unknown_tokens_are_left_out(logits_NV: torch.Tensor) -> None:
    """A token that another processor excluded stays so; one that the guide does not have keeps its logit."""

    class FirstTokens(BaseGuide):
        vocabulary = 20

        def score(self, context: GuideContext, candidates_Nk: torch.Tensor) -> torch.Tensor:
            return torch.where(candidates_Nk < 20, candidates_Nk.float(), torch.nan)

    scores = logits_NV[:1].clone()
    scores[0, :3] = -torch.inf
    for only in (False, True):
        found = GuidedLogitsProcessor(FirstTokens(), 0.5, 0, candidates_only=only)(PROMPTS[:1], scores)
        assert bool((found[0, :3] == -torch.inf).all())
        assert torch.equal(found[0, 20:], scores[0, 20:])
        mean = sum(range(3, 20)) / 17
        wanted = [float(scores[0, a]) + 0.5 * (a - mean) for a in range(3, 20)]
        assert found[0, 3:20].tolist() == pytest.approx(wanted, abs=1e-5)


def test_guides_without_weight_are_not_asked(logits_NV: torch.Tensor) -> None:
    asked = []

    def counting(context: GuideContext, candidates_Nk: torch.Tensor) -> torch.Tensor:
        asked.append(candidates_Nk.shape)
        return candidates_Nk.float()

    processor = GuidedLogitsProcessor({"a": counting, "b": by_remainder}, {"b": 1.0}, 4)
    processor(PROMPTS[:2], logits_NV[:2])
    assert asked == []
    processor.weights = {"a": 1.0}
    processor(PROMPTS[:2], logits_NV[:2])
    assert asked == [(2, 4)]


def test_what_a_guide_is_passed(logits_NV: torch.Tensor, tiny_tokenizer: Any) -> None:
    seen: list[GuideContext] = []

    def watching(context: GuideContext, candidates_Nk: torch.Tensor) -> list[list[float]]:
        seen.append(context)
        texts = context.texts(candidates_Nk)
        assert texts[3][0] == tiny_tokenizer.decode([14, int(candidates_Nk[3, 0])])
        return [[float(len(text)) for text in row] for row in texts]

    mask = (PROMPTS != 0).long()
    GuidedLogitsProcessor(watching, 1.0, 4, attention_mask=mask, tokenizer=tiny_tokenizer)(PROMPTS, logits_NV)
    [context] = seen
    assert torch.equal(context.mask(), mask) and context.vocabulary == V
    assert torch.equal(context.logits_Nk, logits_NV.topk(4).values)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="pass `tokenizer`"):
        GuidedLogitsProcessor(watching, 1.0, 4, attention_mask=mask)(PROMPTS, logits_NV)


def test_objects_and_functions_are_guides() -> None:
    class Plain:
        def score(self, context: GuideContext, candidates_Nk: torch.Tensor) -> torch.Tensor:
            return candidates_Nk.float()

    assert isinstance(Plain(), Guide) and not isinstance(by_remainder, Guide)
    assert as_guide(Plain()).who == "function 'Plain'"
    assert as_guide(by_remainder, "mine").who == "function 'mine'"
    guide = TwoHeads()
    assert as_guide(guide) is guide
    with pytest.raises(TypeError, match=r"must have a method `score\(context, candidates\)`.*got int"):
        as_guide(3)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("guides", "settings", "message"),
    [
        ({}, {}, "`guides` is an empty dictionary"),
        (by_remainder, {"top_k": -1}, "`top_k` must be at least 1, or 0 for the complete vocabulary; got -1"),
        (by_remainder, {"min_p": 1.5}, "`min_p` must be between 0"),
        (by_remainder, {"weights": float("inf")}, "`weights` must be a finite number"),
        ({"a": by_remainder}, {"weights": {"b": 1.0}}, "`weights` has a weight for 'b', which does not exist"),
        ({"a": by_remainder, "b": by_remainder}, {}, "`weights` is one number for a, b: say which"),
    ],
    ids=str,
)
def test_invalid_settings(guides: Any, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GuidedLogitsProcessor(guides, **settings)


def test_invalid_scores(logits_NV: torch.Tensor) -> None:
    def call(score: Any, **settings: Any) -> None:
        GuidedLogitsProcessor({"mine": score}, 1.0, 4, **settings)(PROMPTS[:2], logits_NV[:2])

    with pytest.raises(ValueError, match=r"function 'mine' returned scores of shape \(2,\) for candidates of shape"):
        call(lambda context, candidates: candidates[:, 0])
    with pytest.raises(ValueError, match=r"'mine' returned a score that is not finite\. To exclude a token"):
        call(lambda context, candidates: candidates / 0)
    with pytest.raises(ValueError, match="`top_k` is 31, but the vocabulary has only 30 tokens"):
        GuidedLogitsProcessor(by_remainder, 1.0, 31)(PROMPTS, logits_NV)
    with pytest.raises(ValueError, match="`weights` has 3 rows and the batch has 4"):
        GuidedLogitsProcessor(by_remainder, [1.0, 2.0, 3.0])(PROMPTS, logits_NV)


def test_functions_say_that_cuda_graphs_cannot_use_them(tiny_model: Any) -> None:
    llm = BackboneAndHead(tiny_model)
    processor = GuidedLogitsProcessor({"mine": by_remainder}, 1.0, 4)
    assert processor.static_unsupported_reason(llm) == "the function 'mine' reads the text so far outside of a graph"

    class Changed(GuidedLogitsProcessor):
        def guided_logits(self, *args: Any) -> Any:
            return super().guided_logits(*args)

    assert "may change the logits" in Changed(by_remainder).static_unsupported_reason(llm)
    assert FunctionGuide(by_remainder).calls == 0
