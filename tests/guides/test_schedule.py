# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0
"""Guidance at some tokens only: against a loop over single texts, KL by enumeration, cost, limits and settings."""

from typing import Any

import pytest
import torch
from conftest import make_model, make_tokenizer
from oracles.guide_schedule import is_guided
from oracles.guided_decoding import EOS, PROMPTS, K, guided_logits, make_value, run_generate, token_value

from trl_ext import ValueAugmentedLogitsProcessor
from trl_ext.data.tokenization import left_padded
from trl_ext.decoding.cuda_graph import cached_loops
from trl_ext.decoding.guide_schedule import GuideSchedule
from trl_ext.decoding.static_generate import static_generate
from trl_ext.evaluation.evaluate import evaluate
from trl_ext.evaluation.tables import metrics_of
from trl_ext.generation_settings import GenerationSettings
from trl_ext.guides import logits_processor
from trl_ext.guides.base_guide import FunctionGuide
from trl_ext.guides.guide_file import read_guide_files
from trl_ext.guides.logits_processor import GuidedLogitsProcessor
from trl_ext.inference.guide_decoding import policy_with_guides
from trl_ext.inference.guided import logps_with_processors
from trl_ext.inference.policy import model_policy
from trl_ext.methods.vas.policies import VASDecoding, guided_policy


BETA, LENGTH = 2.0, 9
FORMS = ["state", "action", "policy"]
SCHEDULES = [
    GuideSchedule(2), GuideSchedule(3, entropy=4.5), GuideSchedule(entropy=4.58), GuideSchedule(margin=5.0),
    GuideSchedule(random=0.5, seed=2), GuideSchedule("word"), GuideSchedule("sentence", margin=3.0),
    GuideSchedule(100),
]  # fmt: skip


@pytest.fixture
def tokenizer() -> Any:
    return make_tokenizer()


@pytest.fixture
def policy(tokenizer: Any) -> Any:
    return make_model(len(tokenizer))


def arguments(schedule: GuideSchedule) -> dict[str, Any]:
    """A schedule as arguments of a processor."""
    when = schedule.changes()
    return {"guide_every": when.pop("every", 1), "guide_when": when or None}


def make_processor(value: Any, schedule: GuideSchedule, prompts: list[list[int]] | None = None, **kwargs: Any) -> Any:
    mask = None if prompts is None else left_padded(prompts, 0)[1]
    beta = kwargs.pop("beta", BETA)
    common = {"pad_token_id": 0, "attention_mask": mask, "tokenizer": make_tokenizer(), "end_token_ids": [EOS]}
    return ValueAugmentedLogitsProcessor(value, beta, K, **common | arguments(schedule) | kwargs)


@torch.no_grad()
def next_logits(
    policy: Any, value: Any, schedule: GuideSchedule, prompt: list[int], answer: list[int]
) -> tuple[torch.Tensor, bool]:
    """Logits of the next token, and whether it is guided."""
    ids, tokenizer = [*prompt, *answer], make_tokenizer()
    plain = policy(torch.tensor([ids])).logits[0, -1]
    if not is_guided(schedule, prompt, answer, plain.tolist(), tokenizer):
        return plain, False
    candidates = sorted(range(len(plain)), key=lambda a: -float(plain[a]))[:K]
    values = [BETA * token_value(value, ids, a) for a in candidates]
    if schedule.margin and not max(values) - min(values) > schedule.margin:
        return plain, False
    return guided_logits(policy, [(value, 0, BETA)], ids), True


def oracle(policy: Any, value: Any, schedule: GuideSchedule, prompt: list[int]) -> tuple[list[int], int]:
    """Greedy completion, and the number of its tokens that are guided."""
    answer: list[int] = []
    count = 0
    while len(answer) < LENGTH and EOS not in answer:
        logits, guided = next_logits(policy, value, schedule, prompt, answer)
        answer.append(int(logits.argmax()))
        count += guided
    return answer, count


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_completions_equal_those_of_the_oracle(
    policy: Any, schedule: GuideSchedule, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a batch, alone, with guided rows read alone or with the others, and with CUDA-graph decoding."""
    value = make_value(form, policy)
    expected = [oracle(policy, value, schedule, prompt) for prompt in PROMPTS]
    texts, counts = [ids for ids, _ in expected], [sum(n for _, n in expected), sum(len(ids) for ids, _ in expected)]
    assert 0 < counts[0] < counts[1]
    unguided = run_generate(policy, make_processor(value, schedule, beta=0.0), PROMPTS, LENGTH)
    assert texts != unguided
    for wide in (0, 10_000):
        monkeypatch.setitem(logits_processor.WIDE_FORWARD, "cpu", wide)
        processor = make_processor(value, schedule, PROMPTS)
        assert run_generate(policy, processor, PROMPTS, LENGTH) == texts
        assert processor.scheduled.counts_2.tolist() == counts
        for prompt, text in zip(PROMPTS, texts, strict=True):  # the same processor, whose counts go on
            assert run_generate(policy, processor, [prompt], LENGTH) == [text]
        assert processor.scheduled.counts_2.tolist() == [2 * n for n in counts]
        order = [2, 0, 3, 1]
        assert run_generate(policy, processor, [PROMPTS[i] for i in order], LENGTH) == [texts[i] for i in order]
    processor = make_processor(value, schedule, PROMPTS)
    assert run_generate(policy, processor, PROMPTS, LENGTH, custom_generate=static_generate) == texts
    assert processor.scheduled.counts_2.tolist() == counts
    assert run_generate(policy, processor, PROMPTS, LENGTH, custom_generate=static_generate) == texts
    assert len(cached_loops(policy)._loops) == 1


@pytest.mark.parametrize("form", FORMS)
def test_every_token_is_the_present_behaviour(policy: Any, form: str) -> None:
    """Logits are the same to the last bit, and there is nothing that follows a schedule."""
    value = make_value(form, policy)
    plain = ValueAugmentedLogitsProcessor(value, BETA, K, pad_token_id=0)
    every = ValueAugmentedLogitsProcessor(value, BETA, K, pad_token_id=0, guide_every=1, guide_when={})
    assert every.scheduled is None
    ids = torch.tensor([PROMPTS[0], PROMPTS[2][:3]])
    for _ in range(4):
        with torch.no_grad():
            scores = policy(ids).logits[:, -1]
        found = [processor(ids, scores) for processor in (plain, every)]
        assert torch.equal(*found)
        ids = torch.cat([ids, found[0].argmax(-1, keepdim=True)], 1)


def test_n_above_the_length_guides_the_first_token(policy: Any) -> None:
    """A worked case: the first token is the guided one, the others are the language model's likeliest."""
    value = make_value("state", policy)
    [found] = run_generate(policy, make_processor(value, GuideSchedule(50)), [PROMPTS[2]], 6, eos_token_id=None)
    first = int(guided_logits(policy, [(value, 0, BETA)], PROMPTS[2]).argmax())
    ids = torch.tensor([[*PROMPTS[2], first]])
    rest = policy.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=5, eos_token_id=None, pad_token_id=0
    )
    assert found == [first, *rest[0, ids.shape[1] :].tolist()]


def test_what_the_value_model_reads(policy: Any) -> None:
    """Every 3rd of 9 tokens: the prompt, and three times 6 candidates with the 3 tokens before them."""
    value = make_value("state", policy)
    processor = make_processor(value, GuideSchedule(3))
    run_generate(policy, processor, [PROMPTS[2]], 9, eos_token_id=None)
    assert (processor.value_calls, processor.value_tokens) == (4, len(PROMPTS[2]) + 3 * K + 2 * 3)
    processor = make_processor(value, GuideSchedule(entropy=50.0))
    run_generate(policy, processor, [PROMPTS[2]], 9, eos_token_id=None)
    assert processor.value_calls == 0


def test_only_guided_rows_are_read(policy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two rows one is guided: its candidates alone are read, where that saves more than `WIDE_FORWARD`."""
    value = make_value("state", policy)
    schedule = GuideSchedule(random=0.5, seed=2)
    tokens, found = {}, {}
    weights = [2.0, -1.0, 0.5, 3.0]  # one for each row: rows that are read alone keep their own
    for wide in (0, 10_000):
        monkeypatch.setitem(logits_processor.WIDE_FORWARD, "cpu", wide)
        processor = make_processor(value, schedule, PROMPTS, beta=weights)
        found[wide] = run_generate(policy, processor, PROMPTS, 9, eos_token_id=None)
        tokens[wide] = processor.value_tokens
        guided = int(processor.scheduled.counts_2[0])
    assert tokens[0] < tokens[10_000]
    assert tokens[0] >= guided * K
    for i, prompt in enumerate(PROMPTS):
        alone = make_processor(value, schedule, [prompt], beta=weights[i])
        expected = run_generate(policy, alone, [prompt], 9, eos_token_id=None)
        assert [found[wide][i] for wide in found] == expected * 2


def test_beam_search(policy: Any) -> None:
    """The score of each beam is the sum of the oracle's log-probabilities along it."""
    value, schedule = make_value("state", policy), GuideSchedule(2, random=0.6)
    ids = torch.tensor([PROMPTS[2]])
    output = policy.generate(
        ids, attention_mask=torch.ones_like(ids), num_beams=3, num_return_sequences=3, max_new_tokens=5,
        logits_processor=[make_processor(value, schedule)], eos_token_id=None, pad_token_id=0, do_sample=False,
        renormalize_logits=True, return_dict_in_generate=True, output_scores=True, length_penalty=0.0,
    )  # fmt: skip
    for row, score in zip(output.sequences[:, ids.shape[1] :].tolist(), output.sequences_scores.tolist(), strict=True):
        expected = 0.0
        for t, token in enumerate(row):
            logits, _ = next_logits(policy, value, schedule, PROMPTS[2], row[:t])
            expected += float(logits.log_softmax(-1)[token])
        assert score == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_log_probabilities_and_kl_are_those_of_enumeration(policy: Any, schedule: GuideSchedule) -> None:
    """
    All completions of two tokens: log-probabilities equal the oracle's, sum to 1, and the KL to the language model is
    the sum over them.
    """
    value, size, prompt = make_value("state", policy), policy.config.vocab_size, PROMPTS[0]
    texts = [[a, b] for a in range(size) for b in range(size)]

    def processors(ids: torch.Tensor, mask: torch.Tensor) -> list[Any]:
        return [make_processor(value, schedule, attention_mask=mask, end_token_ids=())]

    [found] = logps_with_processors(policy, processors, [prompt], [texts], pad_token_id=0, batch_size=4096)
    q = torch.stack(found).double()
    first = next_logits(policy, value, schedule, prompt, [])[0].log_softmax(-1)
    assert torch.allclose(q.view(size, size, 2)[:, 0, 0], first.double(), atol=1e-4)
    for a in first.topk(4).indices.tolist():
        second = next_logits(policy, value, schedule, prompt, [a])[0].log_softmax(-1)
        assert torch.allclose(q.view(size, size, 2)[a, :, 1], second.double(), atol=1e-4)
    assert float(q.sum(1).exp().sum()) == pytest.approx(1, abs=1e-4)
    assert float(first.exp().sum()) == pytest.approx(1, abs=1e-5)


def test_sampled_tokens_have_the_probabilities_of_the_log_probabilities(policy: Any, tokenizer: Any) -> None:
    """The mean of log q - log p over samples is the KL by enumeration, to four standard errors."""
    value, prompt, size = make_value("state", policy), PROMPTS[1], policy.config.vocab_size
    guided = guided_policy(policy, tokenizer, value, BETA, K, guide_every=2, guide_when={"margin": 1.0})
    texts = [[a, b] for a in range(size) for b in range(size)]
    base = logps_with_processors(policy, lambda i, m: [], [prompt], [texts], pad_token_id=0, batch_size=4096)[0]
    assert guided.logps is not None
    q = torch.stack(guided.logps([prompt], [texts])[0]).double().sum(1)
    kl = float((q.exp() * (q - torch.stack(base).double().sum(1))).sum())
    torch.manual_seed(0)
    settings = GenerationSettings(num_generations=3000, max_completion_length=2)
    [group] = guided.generate([prompt], settings)
    ids = [completion.ids for completion in group]
    ratios = [
        float((new - old).sum())
        for new, old in zip(
            guided.logps([prompt], [ids])[0],
            logps_with_processors(policy, lambda i, m: [], [prompt], [ids], pad_token_id=0)[0],
            strict=True,
        )
    ]
    mean, error = torch.tensor(ratios).mean(), torch.tensor(ratios).std() / len(ratios) ** 0.5
    assert abs(float(mean) - kl) < 4 * float(error) + 1e-3
    assert kl > 0.05


def test_fewer_guided_tokens_have_less_kl(policy: Any, tokenizer: Any) -> None:
    """A higher margin and a larger n lower the KL; at margin infinity there is none."""
    value, prompt, size = make_value("state", policy), PROMPTS[1], policy.config.vocab_size
    texts = [[a] for a in range(size)]
    base = torch.stack(logps_with_processors(policy, lambda i, m: [], [prompt], [texts], pad_token_id=0)[0]).sum(1)
    kls = []
    for margin in (0.0, 1e9):
        guided = guided_policy(policy, tokenizer, value, BETA, K, guide_when={"margin": margin})
        q = torch.stack(guided.logps([prompt], [texts])[0]).sum(1)  # type: ignore[misc]
        kls.append(float((q.exp() * (q - base)).sum()))
    assert kls[0] > 0.05
    assert kls[1] == pytest.approx(0, abs=1e-6)


def test_candidates_only_holds_for_guided_tokens(policy: Any) -> None:
    """Tokens that are not guided are samples of the language model alone, of the complete vocabulary."""
    value = make_value("state", policy)
    guides = ValueAugmentedLogitsProcessor(value, BETA, K).guides[0]
    processor = GuidedLogitsProcessor(guides, BETA, K, candidates_only=True, guide_every=2, pad_token_id=0)
    ids = torch.tensor([PROMPTS[0]])
    for t in range(4):
        with torch.no_grad():
            scores = policy(ids).logits[:, -1]
        found = processor(ids, scores)
        assert int((found > -torch.inf).sum()) == (scores.shape[1] if t % 2 else K)
        ids = torch.cat([ids, found.argmax(-1, keepdim=True)], 1)


def test_a_function_guides_the_rows_it_is_asked_about(policy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A guide without a KV cache sees the guided rows only, with their masks and logits."""
    monkeypatch.setitem(logits_processor.WIDE_FORWARD, "cpu", 0)
    seen = []

    def score(context: Any, candidates: torch.Tensor) -> torch.Tensor:
        assert len(context.ids_NS) == len(context.mask()) == len(context.logits_Nk) == len(candidates)
        seen.append(len(candidates))
        return (candidates % 7).float()

    ids, mask = left_padded(PROMPTS, 0)
    common: dict[str, Any] = {"attention_mask": mask, "pad_token_id": 0}
    when = {"random": 0.5, "seed": 2}
    some = GuidedLogitsProcessor(score, 1.0, K, guide_when=when, **common)
    every = GuidedLogitsProcessor(score, 1.0, K, **common)
    scores = torch.randn(len(ids), policy.config.vocab_size, generator=torch.Generator().manual_seed(0))
    schedule = GuideSchedule(random=0.5, seed=2)
    pairs = zip(PROMPTS, scores.tolist(), strict=True)
    guided = torch.tensor([is_guided(schedule, prompt, [], row) for prompt, row in pairs])
    assert 0 < int(guided.sum()) < len(ids)
    expected = torch.where(guided[:, None], every(ids, scores), scores)
    assert torch.allclose(some(ids, scores), expected, atol=1e-5)
    assert seen == [len(ids), int(guided.sum())]


def test_weights_that_change_between_turns_are_noticed(policy: Any) -> None:
    """A value model that is updated, or whose weights are replaced, between two calls with the same prompt."""
    value, schedule = make_value("state", policy), GuideSchedule(random=0.4, seed=1)
    processor = make_processor(value, schedule, PROMPTS)
    before = run_generate(policy, processor, PROMPTS, LENGTH)
    layer = value.backbone.layers[0].mlp.up_proj
    layer.weight = torch.nn.Parameter(torch.randn_like(layer.weight))
    expected = run_generate(policy, make_processor(value, schedule, PROMPTS), PROMPTS, LENGTH)
    assert run_generate(policy, processor, PROMPTS, LENGTH) == expected
    assert expected != before


def test_a_policy_counts_its_guided_tokens(policy: Any, tokenizer: Any) -> None:
    value = make_value("state", policy)
    assert guided_policy(policy, tokenizer, value, BETA, K).guided is None
    guided = guided_policy(policy, tokenizer, value, BETA, K, guide_every=4)
    torch.manual_seed(1)
    groups = guided.generate(PROMPTS, GenerationSettings(num_generations=3, max_completion_length=20))
    lengths = [len(completion.ids) for group in groups for completion in group]
    assert min(lengths) < 20
    assert guided.guided is not None
    assert (guided.guided.guided, guided.guided.total) == (sum(-(-n // 4) for n in lengths), sum(lengths))
    guided.logps([[5]], [[[6, 7]]])  # type: ignore[misc]
    assert guided.guided.total == sum(lengths), "log-probabilities generate nothing"


def test_flags() -> None:
    decoding = VASDecoding(guide_every="4", guide_when='{"entropy": 1.5, "random": 0.5}')
    assert decoding.schedule == GuideSchedule(4, entropy=1.5, random=0.5)
    assert decoding.schedule_arguments == {"guide_every": 4, "guide_when": {"entropy": 1.5, "random": 0.5}}
    assert VASDecoding().schedule_arguments == {"guide_every": 1, "guide_when": None}
    for wrong, message in (
        ({"guide_every": "often"}, "`guide_every` must be a whole number of at least 1"),
        ({"guide_when": {"confidence": 0.9}}, "`guide_when` has the condition 'confidence': .* Use `margin`"),
    ):
        with pytest.raises(ValueError, match=message):
            VASDecoding(**wrong).check()


def test_words_need_the_tokenizer(policy: Any) -> None:
    with pytest.raises(ValueError, match="needs the language model's tokenizer"):
        ValueAugmentedLogitsProcessor(make_value("state", policy), guide_every="word")


# -------------------------------------------------------------------------------------------------------- guide files


def test_a_guide_file_has_a_schedule(policy: Any, tokenizer: Any, tmp_path: Any) -> None:
    """The policy of a file guides as one of a processor does, and counts its tokens."""
    file = tmp_path / "guides.yaml"
    file.write_text(
        "guide_every: 2\nguide_when: {margin: 0.5}\nguides: [{kind: function, function: string.capwords, name: own}]\n"
    )
    settings = read_guide_files([str(file)]).settings
    assert settings.schedule == GuideSchedule(2, margin=0.5)
    function = FunctionGuide(lambda context, candidates: (candidates % 7).float())
    guided = policy_with_guides(policy, tokenizer, {"own": function}, 1.0, settings)
    greedy = GenerationSettings(num_generations=1, max_completion_length=8, temperature=0.0)
    found = [group[0].ids for group in guided.generate(PROMPTS, greedy)]
    processor = GuidedLogitsProcessor(
        function, 1.0, guide_every=2, guide_when={"margin": 0.5}, attention_mask=left_padded(PROMPTS, 0)[1]
    )
    assert found == run_generate(policy, processor, PROMPTS, 8)
    assert guided.guided is not None
    assert 0 < guided.guided.guided <= guided.guided.total // 2 + len(PROMPTS)
    assert guided.extras["guide_every"] == 2


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("guide_every: 0", "`guide_every` must be a whole number of at least 1"),
        ("guide_when: {confidence: 0.8}", "`guide_when` has the condition 'confidence'"),
        ("guide_when: 3", "`guide_when` must be a mapping"),
        ("guide_blocks: 4\nguide_every: 2", "`guide_every` has no effect with `guide_blocks`"),
    ],
)
def test_bad_schedules_in_a_guide_file(line: str, message: str, tmp_path: Any) -> None:
    file = tmp_path / "guides.yaml"
    file.write_text(f"{line}\nguides: [{{kind: function, function: string.capwords}}]\n")
    with pytest.raises(ValueError, match=message):
        read_guide_files([str(file)])


def test_evaluations_report_the_share_of_guided_tokens(policy: Any, tokenizer: Any) -> None:
    """Of the evaluated completions, not of those that the KL is measured on; with a column only where it is known."""
    guided = guided_policy(policy, tokenizer, make_value("state", policy), BETA, K, guide_every=3)
    base = model_policy(policy, tokenizer, name="base")
    settings = GenerationSettings(num_generations=2, max_completion_length=9, top_k=5)
    rows = [{"prompt": "the film was"}, {"prompt": "I thought it"}]
    found, of_base = evaluate(guided, rows, settings=settings, base=base), evaluate(base, rows, settings=settings)
    lengths = [len(completion.ids) for group in found.completions for completion in group]
    assert found.metrics["guided_tokens"] == pytest.approx(sum(-(-n // 3) for n in lengths) / sum(lengths))
    assert found.kl_completions and found.metrics["kl"] is not None
    assert "guided_tokens" not in of_base.metrics
    assert metrics_of([found.metrics])[-1] == "guided_tokens"
    assert "guided_tokens" not in metrics_of([of_base.metrics])
