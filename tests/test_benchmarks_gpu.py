# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0
"""The suites that are for GPUs, on a CPU with tiny models: the code runs, and their tables say what results say."""

from typing import Any

import pytest
import torch

from benchmarks import card_memory, graph_decode, harness
from benchmarks.card_memory import Card
from benchmarks.graph_decode import FORMS, GENERATE, PLAIN, PROXY


TINY = graph_decode.Case("tiny", "tiny", "cpu", "float32", 2, 6, 6, targets={FORMS["state"]: 1.3})


@pytest.fixture(scope="module")
def decoded() -> dict[str, Any]:
    return graph_decode.measure(TINY, rounds=1, batches=1, seed=0)


def result_of(suite: str, *cases: Any, gpu: str | None = None, **settings: Any) -> dict[str, Any]:
    facts = harness.environment(torch.device("cpu"), [harness.ROOT / "benchmarks" / f"{suite}.py"])
    facts["hardware"]["gpu"] = gpu
    common = {"schema": harness.SCHEMA, "suite": suite, "device": "cpu", "time": "2026-01-02T00:00:00+00:00"}
    return {**common, "settings": settings, "environment": facts, "cases": list(cases)}


def test_graph_decode_measures_every_variant(decoded: dict[str, Any]) -> None:
    """Tokens are those of the ordinary loops, which is checked before anything is timed."""
    assert set(decoded["variants"]) == {GENERATE, PLAIN, *FORMS.values(), *PROXY.values()}
    assert set(decoded["agreement"].values()) == {0.0}
    settings = {"seed": 0, "rounds": 1, "batches": 1, "clock": "cpu"}
    harness.check_result(result_of("graph_decode", decoded, **settings))


def test_graph_decode_refuses_other_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    work = graph_decode.Workload(TINY, 1, 0)
    generate = work.generate

    def other(form: str | None, i: int, *, static: bool) -> torch.Tensor:
        return generate(form, i, static=static) + int(static)

    monkeypatch.setattr(work, "generate", other)
    with pytest.raises(RuntimeError, match="takes other tokens than the ordinary loop"):
        graph_decode.check_agreement(work)


def test_tables_of_graph_decode(decoded: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graph_decode, "CASES", [TINY])
    settings = {"seed": 0, "rounds": 1, "batches": 1, "clock": "cpu"}
    text = graph_decode.report([result_of("graph_decode", decoded, **settings)])
    ratio = decoded["ratios"][f"{FORMS['state']} / {PLAIN}"]["of_medians"]
    assert f"**{ratio:.2f}** [≤ 1.3]" in text and "0% at most" in text
    assert "Not measured" in graph_decode.report([])


@pytest.mark.parametrize("kind", sorted({case.kind for case in card_memory.cases()}))
def test_everything_that_a_card_does_runs(kind: str) -> None:
    case = next(case for case in card_memory.cases() if case.kind == kind)
    found = card_memory.measure(Card("tiny", "tiny", torch.device("cpu"), prompt=24, new=16), case)
    assert found["name"] == case.name and found["metrics"]["seconds"] > 0
    harness.check_result(result_of("card_memory", found, seeds=[0]))


def test_the_table_of_a_card_says_what_fits() -> None:
    gib = card_memory.GIB

    def found(case: card_memory.Case, reserved: float) -> dict[str, Any]:
        sizes = {"static": gib, "allocated": int(reserved * gib), "reserved": int(reserved * gib), "seconds": 1.0}
        return {"name": case.name, "seed": 0, "settings": {}, "metrics": sizes, "cost": {}}

    by_name = {case.name: case for case in card_memory.cases()}
    assert len(by_name) == len(card_memory.cases()) and set(card_memory.TARGETS) <= set(by_name)
    small, large = by_name["RRHF step, 1 prompt × 6"], by_name["PSLE step, 8 prompts × 2"]
    cases = [found(small, 7.0), found(large, 15.5)]
    settings = {"seeds": [0], "policy": "llama-8b", "value": "llama-1b"}
    rows = card_memory.report([result_of("card_memory", *cases, gpu="a GPU", **settings)]).splitlines()
    [of_small] = [row for row in rows if "step, 1 prompt × 6" in row]
    [of_large] = [row for row in rows if "step, 8 prompts × 2" in row]
    assert "**7.00** [≤ 7.5]" in of_small and of_small.endswith("| fits |")
    assert of_large.endswith("| does not fit |")
    on_cpu = card_memory.report([result_of("card_memory", *cases, **settings)])
    assert "7.00" not in on_cpu  # memory of a CPU is another thing
