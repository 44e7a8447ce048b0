# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Evaluation of policies against exact enumeration and loops over a vocabulary of five words."""

import dataclasses
import itertools
import math

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from trl_ext.data.completion import Completion
from trl_ext.data.schema import DataError
from trl_ext.evaluation.evaluate import Evaluation, evaluate, evaluate_model, untruncated
from trl_ext.evaluation.metrics import distinct_n
from trl_ext.generation_settings import GenerationSettings
from trl_ext.inference.policy import model_policy
from trl_ext.rewards.functions import RewardError, load_rewards


WORDS = ["<eos>", "a", "b", "c", "d"]
EOS = 0
ROWS = [{"prompt": "a b"}, {"prompt": "c"}, {"prompt": "d d a"}]
PLAIN = GenerationSettings(num_generations=2, max_completion_length=3)


def make_tokenizer(words=WORDS) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token=words[1]))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=words[0], pad_token=words[0])


def make_model(seed: int, words: int = len(WORDS), **kwargs) -> LlamaForCausalLM:
    """A model whose distributions are far from uniform."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=words,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=32,
        initializer_range=0.6,
        bos_token_id=None,
        eos_token_id=EOS,
        **kwargs,
    )
    return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer()


@pytest.fixture(scope="module")
def model():
    return make_model(0)


@pytest.fixture(scope="module")
def base():
    return make_model(1)


@torch.no_grad()
def loop_logp(model, prompt: list[int], completion: list[int]) -> list[float]:
    """Log-probability of each token, with one forward pass per token and the softmax written out."""
    logps = []
    for t, token in enumerate(completion):
        logits = model(torch.tensor([prompt + completion[:t]])).logits[0, -1].double().tolist()
        logps.append(logits[token] - math.log(sum(math.exp(x) for x in logits)))
    return logps


def all_responses(length: int) -> list[list[int]]:
    """Every possible response: ended within `length` tokens, or `length` tokens without an end."""
    words = range(1, len(WORDS))
    ended = [[*body, EOS] for n in range(length) for body in itertools.product(words, repeat=n)]
    return ended + [list(body) for body in itertools.product(words, repeat=length)]


@pytest.fixture(scope="module")
def exact_kl(model, base) -> float:
    """KL per response of at most two tokens, by enumeration; mean over the prompts "a b" and "c"."""
    kl = 0.0
    for prompt in ([1, 2], [3]):
        for response in all_responses(2):
            logp, base_logp = sum(loop_logp(model, prompt, response)), sum(loop_logp(base, prompt, response))
            kl += math.exp(logp) * (logp - base_logp) / 2
    return kl


def evaluate_given(
    model, tokenizer, completions: list[list[Completion]], rows=ROWS, rewards=(), batch_size=64, **policies
) -> Evaluation:
    """Evaluate a model, but with given completions."""
    policy = model_policy(model, tokenizer, batch_size=batch_size)
    policy = dataclasses.replace(policy, generate=lambda prompts, settings: completions)
    return evaluate(policy, rows, load_rewards(rewards), settings=PLAIN, **policies)


def prompt_ids(tokenizer) -> list[list[int]]:
    return [tokenizer(row["prompt"])["input_ids"] for row in ROWS]


def completion(*ids: int) -> Completion:
    text = " ".join(WORDS[i] for i in ids if i != EOS)
    return Completion(text=text, ids=list(ids), ended=ids[-1] == EOS)


def test_all_responses_have_probability_one(model):
    total = sum(math.exp(sum(loop_logp(model, [1, 2], response))) for response in all_responses(2))
    assert total == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize(
    "settings",
    [{}, {"temperature": 0.3}, {"top_k": 1}, {"top_p": 0.2}],
    ids=["plain", "temperature", "top-k", "top-p"],
)
def test_kl_equals_exact_enumeration_for_any_settings(model, base, tokenizer, exact_kl, settings):
    settings = GenerationSettings(num_generations=20, max_completion_length=2, **settings)
    rows = [{"prompt": "a b"}, {"prompt": "c"}] * 30
    found = evaluate_model(model, tokenizer, rows, settings=settings, base_model=base, batch_size=600)
    assert exact_kl > 0.5
    assert found.metrics["kl_se"] < exact_kl / 5
    assert abs(found.metrics["kl"] - exact_kl) < 4 * found.metrics["kl_se"]


def test_the_models_own_top_k_does_not_change_the_kl(base, tokenizer):
    plain, greedy_by_default = make_model(0), make_model(0)
    greedy_by_default.generation_config.update(top_k=1, do_sample=True, temperature=0.1)
    found = [evaluate_model(m, tokenizer, ROWS, settings=PLAIN, base_model=base) for m in (plain, greedy_by_default)]
    assert found[0].metrics["kl"] == found[1].metrics["kl"]


def test_kl_of_a_model_to_itself_is_exactly_zero(model, tokenizer):
    settings = GenerationSettings(num_generations=3, max_completion_length=4, top_k=2)
    for same in (model, make_model(0)):  # the same object, and the same weights
        found = evaluate_model(model, tokenizer, ROWS, settings=settings, base_model=same).metrics
        assert (found["kl"], found["kl_se"]) == (0.0, 0.0)


@pytest.mark.parametrize("settings", [PLAIN, GenerationSettings(num_generations=3, max_completion_length=4, top_k=2)])
def test_the_kl_of_the_first_prompts_is_that_of_a_dataset_of_these(model, base, tokenizer, settings):
    """Whether it has completions of its own (top-k) or those that are scored."""
    few = evaluate_model(model, tokenizer, ROWS[:2], settings=settings, base_model=base)
    found = evaluate_model(model, tokenizer, ROWS, settings=settings, base_model=base, kl_prompts=2, keep_logps=True)
    assert len(ROWS) > 2 and len(found.completions) == len(ROWS)
    assert found.notes["kl"] == f"of the first 2 of {len(ROWS)} prompts"
    if found.kl_completions:
        assert found.kl_completions == [*few.kl_completions, *([] for _ in ROWS[2:])]
        assert found.metrics["kl"] == few.metrics["kl"]
    for name in ("policy", "base"):
        assert list(map(len, found.logps[name])) == list(map(len, found.completions))
    none = evaluate_model(model, tokenizer, ROWS, settings=settings, base_model=base, kl_prompts=0)
    assert none.metrics["kl"] is None and "`kl_prompts` is 0" in none.notes["kl"] and not none.kl_completions
    assert none.metrics["perplexity"] == found.metrics["perplexity"]


def test_completions_without_a_probability_are_counted_in_a_note(model, base, tokenizer):
    """A policy with few candidates may have sampled one that rounding leaves out when the text is read again."""
    policy = model_policy(model, tokenizer)

    def logps(prompt_ids, completion_ids):
        found = policy.logps(prompt_ids, completion_ids)
        found[0][0][-1] = -torch.inf
        return found

    base_policy = model_policy(base, tokenizer)
    found = evaluate(dataclasses.replace(policy, logps=logps), ROWS, settings=PLAIN, base=base_policy)
    assert found.metrics["kl"] is None
    assert found.notes["kl"].startswith(f"not defined: 1 of {len(ROWS) * PLAIN.num_generations} completions")


def test_metrics_that_are_not_defined_have_a_reason(model, base, tokenizer):
    """Completions of one token have no bigrams, and one of probability 0 has no perplexity."""
    policy = model_policy(base, tokenizer, name="base")

    def impossible(prompt_ids, completion_ids):
        return [[torch.full((len(ids),), -torch.inf) for ids in group] for group in completion_ids]

    judge = dataclasses.replace(policy, logps=impossible)
    found = evaluate_given(model, tokenizer, [[completion(3)] for _ in ROWS], judge=judge)
    assert found.metrics["distinct_2"] is None and found.metrics["perplexity"] is None
    assert found.notes["distinct_2"] == "not defined: no completion has two tokens"
    assert found.notes["perplexity"] == "not defined: a completion has no probability under base"


def test_kl_and_perplexity_are_those_of_a_loop(model, base, tokenizer):
    found = evaluate_model(model, tokenizer, ROWS, settings=PLAIN, base_model=base)
    kl, nll, tokens = [], 0.0, 0
    for prompt, group in zip(prompt_ids(tokenizer), found.completions, strict=True):
        per_response = []
        for sample in group:
            own, its_base = loop_logp(model, prompt, sample.ids), loop_logp(base, prompt, sample.ids)
            per_response.append(sum(own) - sum(its_base))
            nll, tokens = nll - sum(its_base), tokens + len(sample.ids)
        kl.append(sum(per_response) / len(per_response))
    assert found.metrics["kl"] == pytest.approx(sum(kl) / len(kl), abs=1e-5)
    assert found.metrics["perplexity"] == pytest.approx(math.exp(nll / tokens), rel=1e-5)


@pytest.mark.parametrize(("settings", "calls"), [(PLAIN, 1), (dataclasses.replace(PLAIN, top_k=2), 2)])
def test_the_base_reads_the_same_completions_once(model, base, tokenizer, settings, calls):
    """Its log-probabilities are needed for the KL and the perplexity, which have the same completions or others."""
    policies = [model_policy(model, tokenizer), model_policy(base, tokenizer, name="base")]
    read = []

    def logps(prompt_ids, completion_ids):
        read.append(completion_ids)
        return policies[1].logps(prompt_ids, completion_ids)

    counted = dataclasses.replace(policies[1], logps=logps)
    found = evaluate(policies[0], ROWS, settings=settings, base=counted)
    assert len(read) == calls
    expected = evaluate(policies[0], ROWS, settings=settings, base=policies[1], judge=model_policy(base, tokenizer))
    assert found.metrics == expected.metrics


def test_log_probabilities_are_kept_where_no_metric_needs_them(model, base, tokenizer):
    """Without a base, of the base itself under another judge, and of completions beside those of the KL."""
    policies = [model_policy(each, tokenizer, name=str(n)) for n, each in enumerate((model, base, make_model(2)))]
    truncated = dataclasses.replace(PLAIN, top_k=2)
    for reference, names in (
        (None, ("policy",)),
        (policies[0], ("policy", "base")),
        (policies[1], ("policy", "base")),
    ):
        found = evaluate(policies[0], ROWS, settings=truncated, base=reference, judge=policies[2], keep_logps=True)
        assert sorted(found.logps) == sorted(names)
        [[ids, *_], *_] = [[each.ids for each in group] for group in found.completions]
        own = sum(loop_logp(model, prompt_ids(tokenizer)[0], ids))
        assert found.logps["policy"][0][0] == pytest.approx(own, abs=1e-5)


def test_the_judge_computes_the_perplexity_if_there_is_one(model, base, tokenizer):
    judge = make_model(2)
    completions = [[completion(1, 2, EOS)], [completion(4, 4, 3)], [completion(EOS)]]
    policies = {name: model_policy(m, tokenizer, name=name) for m, name in ((base, "base"), (judge, "judge"))}
    found = evaluate_given(model, tokenizer, completions, base=policies["base"])
    judged = evaluate_given(model, tokenizer, completions, **policies)
    pairs = list(zip(prompt_ids(tokenizer), completions, strict=True))
    for result, under in ((found, base), (judged, judge)):
        logps = [x for p, (c,) in pairs for x in loop_logp(under, p, c.ids)]
        assert result.metrics["perplexity"] == pytest.approx(math.exp(-sum(logps) / len(logps)), rel=1e-5)
    assert found.metrics["kl"] == judged.metrics["kl"]


@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_batch_size_and_padding_change_nothing(model, base, tokenizer, batch_size):
    completions = [
        [completion(1, EOS), completion(2, 3, 4, 1, 2, 2)],
        [completion(EOS), completion(3)],
        [completion(4, 4, EOS), completion(1, 1, 1, EOS)],
    ]
    rows = [{"prompt": "a"}, {"prompt": "b b b b b b b b"}, {"prompt": "c d"}]

    def measure(size):
        base_policy = model_policy(base, tokenizer, batch_size=size)
        return evaluate_given(model, tokenizer, completions, rows, batch_size=size, base=base_policy).metrics

    assert measure(batch_size) == pytest.approx(measure(3), rel=1e-4)


def test_counts_of_given_completions(model, tokenizer):
    """Mean lengths of the prompts: 2.5, 2.5 and 2. Shares that ended: 0.5, 1 and 1."""
    completions = [
        [completion(1, 2, 1, 2), completion(EOS)],
        [completion(2, 1, EOS), completion(3, EOS)],
        [completion(1, EOS)],
    ]
    found = evaluate_given(model, tokenizer, completions).metrics
    assert found["completion_length"] == pytest.approx((2.5 + 2.5 + 2) / 3)
    assert found["completion_length_se"] == pytest.approx(1 / 6)
    assert found["ended"] == pytest.approx((0.5 + 1 + 1) / 3)
    assert found["ended_se"] == pytest.approx(1 / 6)
    assert found["distinct_2"] == pytest.approx(distinct_n([c.ids for row in completions for c in row])) == 4 / 7


def test_rewards_receive_text_ids_and_columns_and_their_mean_is_reported(model, tokenizer):
    """Means of the prompts: 11.5 and 21.5, so the mean is 16.5 and its error 10 / sqrt(2) / sqrt(2)."""
    seen = {}

    def reward(prompts, completions, completion_ids, target, **kwargs):
        seen.update(prompts=prompts, completions=completions, ids=completion_ids, target=target, more=kwargs)
        return [float(t) + len(ids) for t, ids in zip(target, completion_ids, strict=True)]

    completions = [[completion(1, EOS), completion(2)], [completion(3, 3), completion(EOS)]]
    own = {"completions": ["x"], "scores": [1.0], "ended": [True], "rewards": {"old": [1.0]}}  # of other completions
    rows = [{"prompt": "a b", "target": 10, **own}, {"prompt": "c", "target": 20, **own}]
    found = evaluate_given(model, tokenizer, completions, rows, [reward])
    assert seen["prompts"] == ["a b", "a b", "c", "c"]
    assert seen["completions"] == ["a", "b", "c c", ""]
    assert seen["ids"] == [[1, EOS], [2], [3, 3], [EOS]]
    assert seen["target"] == [10, 10, 20, 20]
    assert seen["more"].keys() == {"trainer_state", "log_metric", "log_extra"}
    assert found.rewards == {"reward": [[12.0, 11.0], [22.0, 21.0]]}
    assert found.metrics["reward/reward"] == pytest.approx(16.5)
    assert found.metrics["reward/reward_se"] == pytest.approx(5.0)


def test_what_reward_functions_log_is_reported(model, tokenizer):
    """As by GRPO: the mean of a metric over calls, and a column of the completions."""

    def reward(completions, log_metric, log_extra, **kwargs):
        log_metric("length", float(len(completions)))
        log_extra("text", [text.upper() for text in completions])
        return [0.0] * len(completions)

    completions = [[completion(1, EOS), completion(2)], [completion(3, 3), completion(EOS)]]
    found = evaluate_given(model, tokenizer, completions, [{"prompt": "a b"}, {"prompt": "c"}], [reward])
    assert found.metrics["metric/length"] == 4.0
    assert found.extra == {"text": [["A", "B"], ["C C", ""]]}


def test_completions_of_conversations_are_messages(model, tokenizer):
    chat = make_tokenizer()
    chat.chat_template = "{% for m in messages %}{{ m.content }} {% endfor %}"
    seen = []

    def reward(completions, **kwargs):
        seen.extend(completions)
        return [0.0] * len(completions)

    rows = [{"prompt": [{"role": "user", "content": "a b"}]}]
    evaluate_given(model, chat, [[completion(2, EOS)]], rows, [reward])
    assert seen == [[{"role": "assistant", "content": "b"}]]


def test_completions_without_a_reward_are_ignored_and_counted(model, tokenizer):
    def picky(completions, **kwargs):
        return [None if text == "a" else 2.0 for text in completions]

    def never(completions, **kwargs):
        return [math.nan] * len(completions)

    completions = [[completion(1), completion(2)], [completion(1), completion(1)], [completion(3), completion(3)]]
    found = evaluate_given(model, tokenizer, completions, rewards=[picky, never])
    assert (found.metrics["reward/picky"], found.metrics["reward/picky_se"]) == (2.0, 0.0)
    assert found.notes["reward/picky"] == "not defined for 3 of 6 completions"
    assert (found.metrics["reward/never"], found.metrics["reward/never_se"]) == (None, None)
    assert found.notes["reward/never"] == "not defined for 6 of 6 completions"


def test_a_failing_reward_is_named(model, tokenizer):
    def broken(completions, **kwargs):
        raise KeyError("score")

    with pytest.raises(RewardError, match="'broken' raised KeyError"):
        evaluate_model(model, tokenizer, ROWS, load_rewards([broken]), settings=PLAIN)


def test_without_a_base_kl_and_perplexity_are_missing_with_a_reason(model, tokenizer):
    found = evaluate_model(model, tokenizer, ROWS, settings=PLAIN)
    assert found.metrics["kl"] is found.metrics["kl_se"] is found.metrics["perplexity"] is None
    assert found.notes == {"kl": "no base model was named", "perplexity": "no judge model was named"}


def test_a_policy_without_log_probabilities_has_no_kl_but_a_perplexity(model, base, tokenizer):
    policy = dataclasses.replace(model_policy(model, tokenizer), logps=None)
    found = evaluate(policy, ROWS, settings=PLAIN, base=model_policy(base, tokenizer))
    assert found.metrics["kl"] is None
    assert found.notes["kl"] == "it has no log-probabilities"
    assert found.metrics["perplexity"] > 1


@pytest.mark.parametrize("settings", [PLAIN, dataclasses.replace(PLAIN, top_k=3)])
def test_a_policy_that_computes_its_kl_while_it_generates(model, tokenizer, settings):
    """Its mean is reported without a base; of completions that are not truncated, and as a bound if it is one."""
    plain = model_policy(model, tokenizer)

    def generate(prompts, wanted):
        found = plain.generate(prompts, wanted)
        offset = 0.0 if wanted == untruncated(settings) else 100.0
        return [[dataclasses.replace(c, kl=offset + len(c.ids)) for c in row] for row in found]

    policy = dataclasses.replace(plain, generate=generate, logps=None, own_kl="exact")
    found = evaluate(policy, ROWS, settings=settings)
    assert 0 < found.metrics["kl"] <= settings.max_completion_length and found.metrics["kl_se"] is not None
    assert "kl" not in found.notes and "kl_bound" not in found.metrics
    first = evaluate(policy, ROWS, settings=settings, kl_prompts=2)
    assert first.notes["kl"] == f"of the first 2 of {len(ROWS)} prompts"
    assert evaluate(policy, ROWS, settings=settings, kl_prompts=0).metrics["kl"] is None
    bounded = evaluate(dataclasses.replace(policy, own_kl="bound"), ROWS, settings=settings)
    assert bounded.metrics["kl_bound"] == found.metrics["kl"] and bounded.metrics["kl"] is None
    assert bounded.notes["kl"].startswith("not measured; at most ")


def test_another_vocabulary_has_no_kl_and_the_perplexity_of_its_text(model, base, tokenizer):
    reordered = ["<eos>", "d", "c", "b", "a"]
    base_policy = model_policy(base, tokenizer, name="M")
    completions = [[completion(2, 3, EOS)]] * 3  # the text is "b c"
    found = evaluate_given(model, make_tokenizer(reordered), completions, base=base_policy)
    assert found.metrics["kl"] is None
    assert found.notes["kl"] == "M has another vocabulary"
    logps = [x for p in prompt_ids(tokenizer) for x in loop_logp(base, p, [2, 3, EOS])]
    assert found.metrics["perplexity"] == pytest.approx(math.exp(-sum(logps) / len(logps)), rel=1e-5)


def test_a_token_added_before_training_prevents_a_kl_only_if_it_is_used(model, base, tokenizer):
    wider, extended = make_model(0, words=6), make_tokenizer([*WORDS, "<pad>"])
    base_policy = model_policy(base, tokenizer, name="M")

    def measure(completions):
        return evaluate_given(wider, extended, completions, base=base_policy)

    known = [[completion(2, 3, EOS)]] * 3
    kl = [sum(loop_logp(wider, p, [2, 3, EOS])) - sum(loop_logp(base, p, [2, 3, EOS])) for p in prompt_ids(tokenizer)]
    assert measure(known).metrics["kl"] == pytest.approx(sum(kl) / 3, rel=1e-4)
    unknown = [[Completion("b <pad>", [2, 5], False)]] * 3
    assert measure(unknown).metrics["kl"] is None
    assert measure(unknown).notes["kl"] == "M has another vocabulary"
    assert measure(unknown).metrics["perplexity"] > 1  # of its text, tokenized again


def test_one_prompt_has_no_standard_errors(model, base, tokenizer):
    found = evaluate_model(model, tokenizer, ROWS[:1], settings=PLAIN, base_model=base)
    assert all(value is None for key, value in found.metrics.items() if key.endswith("_se"))
    assert all(value is not None for key, value in found.metrics.items() if not key.endswith("_se"))
    assert "at least two prompts" in found.notes["se"]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "the dataset is empty"),
        ([{"prompt": "a"}, {"question": "b", "id": 1}], "Row 1 has no prompt.*id, question"),
    ],
)
def test_rows_without_prompts_are_an_error(model, tokenizer, rows, message):
    with pytest.raises(DataError, match=message):
        evaluate_model(model, tokenizer, rows, settings=PLAIN)


def test_the_seed_determines_the_completions_and_torchs_generator_is_restored(model, tokenizer):
    settings = GenerationSettings(num_generations=4, max_completion_length=8)

    def texts(seed):
        found = evaluate_model(model, tokenizer, ROWS, settings=settings, seed=seed)
        return [[c.text for c in row] for row in found.completions]

    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = texts(1)
    assert torch.equal(torch.rand(3), expected)
    assert texts(1) == first != texts(2)


def test_a_model_in_training_mode_is_evaluated_without_dropout_and_returns_to_it(base, tokenizer):
    model = make_model(0, attention_dropout=0.5)
    expected = evaluate_model(model, tokenizer, ROWS, settings=PLAIN, base_model=base).metrics
    model.train()
    assert evaluate_model(model, tokenizer, ROWS, settings=PLAIN, base_model=base).metrics == expected
    assert model.training


def test_the_base_of_an_adapter_is_the_model_without_it(tokenizer):
    from peft import LoraConfig, get_peft_model

    settings = GenerationSettings(num_generations=4, max_completion_length=4)
    adapted = get_peft_model(make_model(0), LoraConfig(target_modules=["q_proj", "v_proj", "o_proj"])).eval()
    assert evaluate_model(adapted, tokenizer, ROWS, settings=settings).metrics["kl"] == 0.0  # B starts at zero
    torch.manual_seed(3)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    found = evaluate_model(adapted, tokenizer, ROWS, settings=settings).metrics
    assert found == pytest.approx(
        evaluate_model(adapted, tokenizer, ROWS, settings=settings, base_model=make_model(0)).metrics, rel=1e-5
    )
    assert found["kl"] > 0.01
