# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0
"""Each guide file of recipes/decoding against the formula of its paper, on tiny models."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import REPOSITORY, make_model
from oracles import guide_formulas as formulas
from oracles.guided_decoding import guided_logits, make_value, state_value
from transformers import LlamaConfig, LlamaForTokenClassification

from trl_ext.guides.guide_file import read_guide_files
from trl_ext.inference.guide_decoding import GuideDecoding


FOLDER = REPOSITORY / "recipes" / "decoding"
PRESETS = sorted(FOLDER.glob("*.yaml"))
PROMPTS = [[15, 16, 17], [19], [11, 12, 13, 14, 15, 16, 17]]
COMPLETIONS = [[[22, 23, 24], [25]], [[26, 27, 28]], [[29, 30]]]


def header_of(path: Path) -> str:
    return path.read_text().split("\n\n")[0]


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_a_preset_is_short_names_its_source_and_is_parsed(path: Path) -> None:
    lines = path.read_text().splitlines()
    assert len(lines) <= 15
    header = header_of(path)
    assert "arXiv 2" in header and f"--guide recipes/decoding/{path.name}" in header
    files = read_guide_files([str(path)])
    assert files.guides
    assert f"({path.relative_to(REPOSITORY / 'recipes')})" in (REPOSITORY / "recipes" / "README.md").read_text()


def test_the_presets_are_those_of_the_literature() -> None:
    names = "args best_of_n_pruned cd_block cd_token fudge genarm ivr proxy_tuning rad value_beam_search vas"
    assert " ".join(path.stem for path in PRESETS) == names


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Tiny models by role, each with its folder."""
    from conftest import make_tokenizer

    tokenizer = make_tokenizer()
    vocabulary = len(tokenizer)
    llm = make_model(vocabulary)
    models = {
        "value": make_value("state", llm),
        "action": make_value("action", llm, seed=8),
        "reward": make_model(vocabulary, seed=3, num_labels=1),
        "labels": make_model(vocabulary, seed=4, num_labels=3),
        "expert": make_model(vocabulary, seed=5),
        "anti_expert": make_model(vocabulary, seed=6),
    }
    with torch.random.fork_rng():
        torch.manual_seed(9)
        config = LlamaConfig(**{**llm.config.to_dict(), "num_labels": 2})
        models["tokens"] = LlamaForTokenClassification(config).eval()
    folder = tmp_path_factory.mktemp("guides")
    for name, model in models.items():
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    return {"llm": llm, "tokenizer": tokenizer, "folder": folder, **models}


def policy_of(saved: dict[str, Any], preset: str, names: dict[str, str], tmp_path: Path, **changes: Any) -> Any:
    """The policy of a preset whose models are replaced by tiny ones."""
    content = yaml.safe_load((FOLDER / f"{preset}.yaml").read_text()) | changes
    for guide in content["guides"]:
        for key in ("model", "expert", "anti_expert"):
            if key in guide:
                guide[key] = str(saved["folder"] / names[key])
    path = tmp_path / f"{preset}.yaml"
    path.write_text(yaml.safe_dump(content))
    decoding = GuideDecoding([str(path)])
    decoding.check()
    [policy] = decoding.policies(saved["llm"], saved["tokenizer"], name="base", batch_size=8)
    return policy


def check_distribution(policy: Any, wanted: Callable[[list[int]], list[float]]) -> None:
    """All next tokens of one prompt, and tokens of a padded batch of others, later ones on the KV cache."""
    vocabulary = len(wanted(PROMPTS[0]))
    [rows] = policy.logps(PROMPTS[:1], [[[a] for a in range(vocabulary)]])
    found = [math.exp(float(row[0])) for row in rows]
    assert found == pytest.approx(wanted(PROMPTS[0]), abs=2e-5)
    assert sum(found) == pytest.approx(1, abs=1e-3)
    for prompt, group, logps in zip(PROMPTS, COMPLETIONS, policy.logps(PROMPTS, COMPLETIONS), strict=True):
        for completion, row in zip(group, logps, strict=True):
            for t, token in enumerate(completion):
                p = wanted([*prompt, *completion[:t]])[token]
                assert math.exp(float(row[t])) == pytest.approx(p, rel=2e-3, abs=1e-6)


def test_vas(saved: dict[str, Any], tmp_path: Path) -> None:
    policy = policy_of(saved, "vas", {"model": "value"}, tmp_path)

    def wanted(ids: list[int]) -> list[float]:
        return guided_logits(saved["llm"], [(saved["value"], 0, 3.0)], ids, k=20).softmax(0).tolist()  # type: ignore[no-any-return]

    check_distribution(policy, wanted)
    assert policy.truncation == ""


@pytest.mark.parametrize(("preset", "k", "weight"), [("args", 10, 1.5), ("rad", 20, 30.0)])
def test_args_and_rad(saved: dict[str, Any], tmp_path: Path, preset: str, k: int, weight: float) -> None:
    policy = policy_of(saved, preset, {"model": "reward"}, tmp_path)
    check_distribution(policy, lambda ids: formulas.reward_search(saved["llm"], saved["reward"], ids, k, weight))
    assert policy.truncation == f"top-k {k}"


@pytest.mark.parametrize(("classifier", "label"), [("labels", 1), ("tokens", 1)])
def test_fudge(saved: dict[str, Any], tmp_path: Path, classifier: str, label: int) -> None:
    """With a classifier of sequences and one of tokens; among fewer tokens than the small vocabulary has."""
    policy = policy_of(saved, "fudge", {"model": classifier}, tmp_path, guide_top_k=40)
    check_distribution(policy, lambda ids: formulas.fudge(saved["llm"], saved[classifier], ids, 40, label))


@pytest.mark.parametrize("form", ["value", "action"])
def test_cd_token(saved: dict[str, Any], tmp_path: Path, form: str) -> None:
    """Both forms of value model; that of the form "action" predicts the value of each token from the state before."""
    from oracles.guided_decoding import token_value

    policy = policy_of(saved, "cd_token", {"model": form}, tmp_path)

    def value(ids: list[int]) -> float:
        return token_value(saved[form], ids[:-1], ids[-1])

    check_distribution(policy, lambda ids: formulas.controlled_decoding(saved["llm"], value, ids, 1.0))


def test_genarm(saved: dict[str, Any], tmp_path: Path) -> None:
    policy = policy_of(saved, "genarm", {"expert": "expert"}, tmp_path)
    check_distribution(policy, lambda ids: formulas.ratio(saved["llm"], saved["expert"], None, ids, 1.0))


def test_proxy_tuning(saved: dict[str, Any], tmp_path: Path) -> None:
    names = {"expert": "expert", "anti_expert": "anti_expert"}
    policy = policy_of(saved, "proxy_tuning", names, tmp_path)
    check_distribution(
        policy, lambda ids: formulas.ratio(saved["llm"], saved["expert"], saved["anti_expert"], ids, 1.0)
    )


def test_contrastive_decoding(saved: dict[str, Any], tmp_path: Path) -> None:
    """An anti-expert alone, among the tokens at least a tenth as likely as the likeliest."""
    path = tmp_path / "contrastive.yaml"
    guide = {"kind": "language_model", "anti_expert": str(saved["folder"] / "anti_expert")}
    settings = {"guide_top_k": 0, "guide_min_p": 0.1, "guide_candidates_only": True, "guides": [guide]}
    path.write_text(yaml.safe_dump(settings))
    [policy] = GuideDecoding([str(path)]).policies(saved["llm"], saved["tokenizer"], name="base", batch_size=8)
    check_distribution(policy, lambda ids: formulas.contrastive(saved["llm"], saved["anti_expert"], ids, 0.1))
    assert policy.truncation == "min-p 0.1"


@pytest.mark.parametrize("preset", ["cd_block", "ivr"])
def test_blocks(saved: dict[str, Any], tmp_path: Path, preset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each round keeps the best block by value, or one of softmax(weight value), with the oracle's values."""
    from trl_ext.generation_settings import GenerationSettings
    from trl_ext.guides.blocks import BlockScorer, choose_block
    from trl_ext.inference import block_policy

    rounds: list[tuple[list[int], list[list[int]], list[float]]] = []
    scored = BlockScorer.__call__

    def recorded(self: Any, texts: Any, blocks: Any) -> tuple[torch.Tensor, torch.Tensor]:
        found = scored(self, texts, blocks)
        assert not found[1].any()  # no guide scores single tokens
        rounds.extend(zip(texts, blocks, found[0].tolist(), strict=True))
        return found

    numbers = iter([0.05, 0.5, 0.95] * 10)
    chosen: list[int] = []

    def choose(logits: torch.Tensor, uniform: float) -> tuple[int, float]:
        found = choose_block(logits, next(numbers))
        chosen.append(found[0])
        return found

    monkeypatch.setattr(BlockScorer, "__call__", recorded)
    monkeypatch.setattr(block_policy, "choose_block", choose)
    changes = {"guide_blocks": 3, "guide_block_length": 2}
    policy = policy_of(saved, preset, {"model": "value"}, tmp_path, **changes)
    settings = GenerationSettings(num_generations=1, max_completion_length=6)
    torch.manual_seed(0)
    [[completion]] = policy.generate(PROMPTS[:1], settings)
    text = list(PROMPTS[0])
    weight = 2.0 if preset == "ivr" else 1.0
    for number, (before, blocks, logits) in enumerate(rounds):
        assert before == text and len(blocks) == 3
        wanted = [weight * state_value(saved["value"], [*text, *block]) for block in blocks]
        assert logits == pytest.approx(wanted, abs=1e-4)
        index = max(range(3), key=wanted.__getitem__) if preset == "cd_block" else chosen[number]
        text += blocks[index]
    assert completion.ids == text[len(PROMPTS[0]) :]
    assert len(rounds) >= 1 and completion.ended == (completion.ids[-1] == 1)
    assert policy.logps is None and policy.own_kl == "bound"
    gains = [math.log(3) - 2 / 3 for _ in rounds]
    if preset == "ivr":
        gains = [
            math.log(3 * float(torch.tensor(logits).softmax(0)[index]))
            for (_, _, logits), index in zip(rounds, chosen, strict=True)
        ]
    assert completion.kl == pytest.approx(sum(gains), abs=1e-4)
    with pytest.raises(ValueError, match="Temperature 0 and beam searches give the same block"):
        policy.generate(PROMPTS[:1], GenerationSettings(num_generations=1, temperature=0))


@pytest.mark.parametrize("preset", ["value_beam_search", "best_of_n_pruned"])
def test_beams_of_blocks(saved: dict[str, Any], tmp_path: Path, preset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The texts that loops over all blocks keep, by the oracle's values; with pruning half as many in each round."""
    from trl_ext.generation_settings import GenerationSettings
    from trl_ext.inference import block_policy

    generate, rounds = block_policy.generate, list[dict[tuple[int, ...], list[Any]]]()

    def recorded(model: Any, tokenizer: Any, texts: list[list[int]], *args: Any, **kwargs: Any) -> Any:
        found = generate(model, tokenizer, texts, *args, **kwargs)
        rounds.append({})
        for text, group in zip(texts, found, strict=True):
            rounds[-1].setdefault(tuple(text), []).extend(group)
        return found

    monkeypatch.setattr(block_policy, "generate", recorded)
    policy = policy_of(saved, preset, {"model": "value"}, tmp_path, guide_block_length=2)
    torch.manual_seed(0)
    [[completion]] = policy.generate(PROMPTS[:1], GenerationSettings(num_generations=1, max_completion_length=6))
    prompt, ended = tuple(PROMPTS[0]), list[tuple[float, tuple[int, ...], bool]]()
    kept: list[tuple[float, tuple[int, ...], bool]] = []
    beams, blocks, share = (4, 4, 1.0) if preset == "value_beam_search" else (16, 1, 0.5)
    for number, made in enumerate(rounds, 1):
        assert sum(map(len, made.values())) == (beams * blocks if number == 1 else len(kept) * blocks)
        options = [
            (state_value(saved["value"], [*text, *block.ids]), (*text, *block.ids), block.ended)
            for text, group in made.items()
            for block in group
        ]
        best = sorted([*options, *ended], key=lambda each: -each[0])[: math.ceil(beams * share**number)]
        ended = [each for each in best if each[2]]
        kept = [each for each in best if not each[2]]
        if number < len(rounds):
            assert set(rounds[number]) == {text for _, text, _ in kept}
    _, text, end = max([*kept, *ended])
    assert (prompt + tuple(completion.ids), completion.ended) == (text, end)
    assert len(rounds) == 3 or not kept
    of_text = math.ceil(len(completion.ids) / 2)  # rounds
    assert completion.kl == pytest.approx(math.log(beams) + of_text * math.log(blocks))


def test_the_weights_of_a_block_are_a_softmax() -> None:
    """Values 0, ln 2 and ln 5 at uniform numbers: weights 1/8, 2/8 and 5/8, and ln(3 x 5/8) for the last."""
    from trl_ext.guides.blocks import choose_block

    logits = torch.tensor([0.0, math.log(2), math.log(5)])
    assert [choose_block(logits, u)[0] for u in (0.0, 0.12, 0.13, 0.37, 0.38, 0.999, 1.0)] == [0, 0, 1, 1, 2, 2, 2]
    assert choose_block(logits, 0.9)[1] == pytest.approx(math.log(15 / 8))
