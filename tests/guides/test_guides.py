# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0
"""Classifiers and language models as guides: caches, padding, vocabularies, encoders, blocks and what they refuse."""

import logging
import math
from typing import Any

import pytest
import torch
from conftest import make_model, make_tokenizer
from oracles import guide_formulas as formulas
from oracles.guided_decoding import PROMPTS, make_value, run_generate, state_value
from transformers import BertConfig, BertForSequenceClassification, GPT2Config, GPT2ForTokenClassification

from trl_ext.data.tokenization import left_padded
from trl_ext.decoding.guide import GuideContext
from trl_ext.guides.base_guide import BaseGuide, FunctionGuide
from trl_ext.guides.blocks import BlockScorer
from trl_ext.guides.classifier_guide import ClassifierGuide, label_output
from trl_ext.guides.language_model_guide import LanguageModelGuide
from trl_ext.guides.logits_processor import GuidedLogitsProcessor
from trl_ext.methods.vas.decoding.value_guide import ValueGuide
from trl_ext.models.backbone_and_head import BackboneAndHead


VOCABULARY = len(make_tokenizer())
CANDIDATES = torch.tensor([[22, 23, 5], [30, 7, 9], [40, 41, 42], [8, 12, 60]])


def classifier(labels: int = 1, seed: int = 3) -> Any:
    return make_model(VOCABULARY, seed=seed, num_labels=labels)


def context_of(rows: list[list[int]]) -> GuideContext:
    ids, mask = left_padded(rows, 0)
    return GuideContext(ids, lambda: mask, VOCABULARY)


def gpt2_of_tokens() -> Any:
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=2, num_labels=2, initializer_range=0.3)
    return GPT2ForTokenClassification(config).eval()


@pytest.mark.parametrize("kind", ["one label", "three labels", "of tokens"])
def test_scores_of_a_classifier_over_several_steps(kind: str) -> None:
    """For each row of a padded batch, each candidate as a text of its own; the cache is kept in step."""
    model, label = {
        "one label": (classifier(), 0),
        "three labels": (classifier(3), 2),
        "of tokens": (gpt2_of_tokens(), 1),
    }[kind]
    guide = ClassifierGuide(model, label=str(label))
    rows = [list(prompt) for prompt in PROMPTS]
    for step in range(4):
        found = guide.score(context_of(rows), CANDIDATES)
        for n, row in enumerate(rows):
            wanted = [formulas.label_logits(model, [*row, int(a)])[label] for a in CANDIDATES[n]]
            assert found[n].tolist() == pytest.approx(wanted, abs=1e-4)
        for n, row in enumerate(rows):
            row.append(int(CANDIDATES[n, step % 3]) if step != 2 else 50)
    # The prompts, then three candidates a step; a token that was no candidate is read with the next ones.
    assert guide.calls == 5 and guide.tokens == 4 * 7 + 4 * 3 * 3 + 4 * 4
    alone = guide.score(context_of([rows[1]]), CANDIDATES[1:2])
    guide.reset()
    torch.testing.assert_close(guide.score(context_of(rows), CANDIDATES)[1:2], alone, rtol=1e-4, atol=1e-4)


def test_outputs_of_a_label() -> None:
    """Worked by hand: logits ln 1, ln 2, ln 5 are probabilities 1/8, 2/8, 5/8; independent labels use the sigmoid."""
    logits = torch.tensor([1.0, 2.0, 5.0]).log()
    assert float(label_output(logits, 2, "logit", independent=False)) == pytest.approx(1.609438, abs=1e-5)
    assert float(label_output(logits, 2, "probability", independent=False)) == pytest.approx(5 / 8)
    assert float(label_output(logits, 1, "log_probability", independent=False)) == pytest.approx(-1.386294, abs=1e-5)
    assert float(label_output(logits, 1, "probability", independent=True)) == pytest.approx(2 / 3)
    assert float(label_output(torch.tensor([-200.0]), 0, "log_probability", independent=True)) == -200


def test_labels_that_are_independent() -> None:
    model = classifier(3)
    model.config.problem_type = "multi_label_classification"
    guide = ClassifierGuide(model, label="1", output="probability")
    logit = formulas.label_logits(model, [5, 6, 22])[1]
    found = guide.score(context_of([[5, 6]]), torch.tensor([[22]]))
    assert found.item() == pytest.approx(1 / (1 + math.exp(-logit)), abs=1e-5)


@pytest.mark.parametrize("which", ["expert", "anti_expert", "both"])
def test_scores_of_language_models_over_several_steps(which: str) -> None:
    expert, anti = make_model(VOCABULARY, seed=5), make_model(VOCABULARY, seed=6)
    guide = LanguageModelGuide(None if which == "anti_expert" else expert, None if which == "expert" else anti)
    rows = [list(prompt) for prompt in PROMPTS]
    for step in range(3):
        found = guide.score(context_of(rows), CANDIDATES)
        for n, row in enumerate(rows):
            up, down = (torch.tensor(formulas.probabilities(model, row)).log() for model in (expert, anti))
            wanted = {"expert": up, "anti_expert": -down, "both": up - down}[which][CANDIDATES[n]]
            torch.testing.assert_close(found[n], wanted, rtol=1e-4, atol=1e-4)
        for n, row in enumerate(rows):
            row.append(int(CANDIDATES[n, step % 3]))
    assert guide.calls == 3 * (2 if which == "both" else 1), "one forward pass of each model a step"


def test_a_mixture_of_guides_adds_up(tiny_model: Any) -> None:
    """A value model, a classifier and language models: the sum of each alone, with weights of their own."""
    value = ValueGuide(make_value("state", tiny_model))
    guides = {"v": value, "c": ClassifierGuide(classifier()), "l": LanguageModelGuide(make_model(VOCABULARY, seed=5))}
    ids, mask = left_padded(PROMPTS, 0)
    logits = tiny_model(ids, attention_mask=mask).logits[:, -1].detach()
    rows = [{"v": 1.0, "c": -0.5, "l": 2.0}, {"c": 1.0}, {"l": 1.0}, {}]
    both = GuidedLogitsProcessor(guides, rows, 6, attention_mask=mask)(ids, logits) - logits
    for n, weights in enumerate(rows):
        alone = [
            w * (GuidedLogitsProcessor(guides[name], 1.0, 6, attention_mask=mask)(ids, logits) - logits)[n]
            for name, w in weights.items()
        ]
        torch.testing.assert_close(both[n], sum(alone, torch.zeros(VOCABULARY)), rtol=1e-4, atol=1e-4)
    assert not both[3].any()


@pytest.mark.parametrize("beams", [1, 3])
def test_generate_with_two_guides(tiny_model: Any, beams: int) -> None:
    """Greedy tokens of a padded batch against loops; beams against no cache."""
    model, expert = classifier(), make_model(VOCABULARY, seed=5)
    guides = {"c": ClassifierGuide(model), "l": LanguageModelGuide(expert)}
    weights = {"c": 1.5, "l": 0.5}
    settings: dict[str, Any] = {"eos_token_id": None} if beams == 1 else {"eos_token_id": None, "num_beams": beams}

    def processor() -> GuidedLogitsProcessor:
        mask = left_padded(PROMPTS, 0)[1]
        return GuidedLogitsProcessor(guides, weights, 6, candidates_only=True, attention_mask=mask)

    found = run_generate(tiny_model, processor(), PROMPTS, 5, **settings)
    if beams > 1:

        class Uncached(GuidedLogitsProcessor):
            def __call__(self, input_ids: Any, scores: Any) -> Any:
                self.reset()
                return super().__call__(input_ids, scores)

        mask = left_padded(PROMPTS, 0)[1]
        naive = Uncached(guides, weights, 6, candidates_only=True, attention_mask=mask)
        assert found == run_generate(tiny_model, naive, PROMPTS, 5, **settings)
        return
    for prompt, row in zip(PROMPTS, found, strict=True):
        text = list(prompt)
        for token in row:
            logits, logps = formulas.logits_of(tiny_model, text), formulas.probabilities(expert, text)
            candidates = formulas.likeliest(logits, 6)
            total = {
                a: logits[a] + 1.5 * formulas.label_logits(model, [*text, a])[0] + 0.5 * math.log(logps[a])
                for a in candidates
            }
            assert token == max(candidates, key=total.__getitem__)
            text.append(token)


# ---------------------------------------------------------------------------------------- vocabularies and encoders


def letters() -> Any:
    """A tokenizer of single letters, in another order."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = ["<s>", "</s>", "<unk>", "\u0120", "\u010a", *(chr(code) for code in range(126, 32, -1))]
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(vocabulary)}, [], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="</s>"
    )


def test_a_classifier_of_another_vocabulary_reads_text(caplog: pytest.LogCaptureFixture) -> None:
    tokenizer, other = make_tokenizer(), letters()
    model = make_model(len(other), seed=3, num_labels=1, pad_token_id=1)
    names = {"tokenizer": tokenizer, "own_tokenizer": other}
    with pytest.raises(ValueError, match=r"classifier 'rm' has another vocabulary.*`retokenize`"):
        ClassifierGuide(model, name="rm", **names)
    with caplog.at_level(logging.WARNING):
        guide = ClassifierGuide(model, retokenize=True, **names)
    assert sum("without a KV cache" in record.getMessage() for record in caplog.records) == 1
    found = guide.score(context_of(PROMPTS), CANDIDATES)
    for n, row in enumerate(PROMPTS):
        for column, a in enumerate(CANDIDATES[n].tolist()):
            ids = other(tokenizer.decode([*row, a]), add_special_tokens=False)["input_ids"]
            assert float(found[n, column]) == pytest.approx(formulas.label_logits(model, ids)[0], abs=1e-4)
    with pytest.raises(ValueError, match=r"expert has another vocabulary.*It scores tokens"):
        LanguageModelGuide(make_model(len(other)), tokenizer=tokenizer, expert_tokenizer=other)


@pytest.mark.parametrize("kind", ["classifier", "language model"])
def test_a_language_model_with_more_tokens(kind: str) -> None:
    """Tokens that only the language model has keep their logits as candidates, and are an error in a text."""
    larger, tokenizer = make_model(VOCABULARY + 8), make_tokenizer()
    small = classifier() if kind == "classifier" else make_model(VOCABULARY, seed=5)

    def guide(known: bool) -> BaseGuide:
        own = tokenizer if known else None
        if kind == "classifier":
            return ClassifierGuide(small, tokenizer=tokenizer, own_tokenizer=own)
        return LanguageModelGuide(small, tokenizer=tokenizer, expert_tokenizer=own)

    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        logits = larger(ids).logits[:, -1]
    found = GuidedLogitsProcessor(guide(known=True), 1.0, 0)(ids, logits)
    expected = GuidedLogitsProcessor(guide(known=True), 1.0, 0)(ids, logits[:, :VOCABULARY])
    assert torch.equal(found[:, VOCABULARY:], logits[:, VOCABULARY:])
    torch.testing.assert_close(found[:, :VOCABULARY], expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match=f"Token {VOCABULARY + 3} is not in the vocabulary of the"):
        GuidedLogitsProcessor(guide(known=True), 1.0, 5)(torch.tensor([[5, VOCABULARY + 3]]), logits)
    argument = "own_tokenizer" if kind == "classifier" else "expert_tokenizer"
    with pytest.raises(ValueError, match=f"pass both .`tokenizer=`, `{argument}=`."):
        GuidedLogitsProcessor(guide(known=False), 1.0, 5)(ids, logits)


def test_an_encoder_reads_text() -> None:
    torch.manual_seed(0)
    tokenizer = make_tokenizer()
    config = BertConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_labels=2, initializer_range=0.3, pad_token_id=0,
    )  # fmt: skip
    model = BertForSequenceClassification(config).eval()
    with pytest.raises(ValueError, match=r"does not read in one direction.*`retokenize`"):
        ClassifierGuide(model, label="1", tokenizer=tokenizer, own_tokenizer=tokenizer)
    guide = ClassifierGuide(
        model, label="1", output="log_probability", tokenizer=tokenizer, own_tokenizer=tokenizer, retokenize=True
    )
    ids, mask = left_padded(PROMPTS, 0)
    context = GuideContext(ids, lambda: mask, VOCABULARY, tokenizer=tokenizer)
    found = guide.score(context, CANDIDATES)
    for n, row in enumerate(PROMPTS):
        for column, a in enumerate(CANDIDATES[n].tolist()):
            logits = torch.tensor(formulas.label_logits(model, tokenizer(tokenizer.decode([*row, a]))["input_ids"]))
            assert float(found[n, column]) == pytest.approx(float(logits.log_softmax(0)[1]), abs=1e-4)


# ------------------------------------------------------------------------------------------------------------ blocks


def test_scores_of_blocks(tiny_model: Any) -> None:
    """The value of the text with the block; for language models the sum over its tokens; blocks of several lengths."""
    value, expert = make_value("state", tiny_model), make_model(VOCABULARY, seed=5)
    guides: dict[str, BaseGuide] = {"v": ValueGuide(value), "l": LanguageModelGuide(expert)}
    texts = [[15, 16, 17], [19]]
    blocks = [[[22, 23], [24, 25, 26]], [[27, 1], [28]]]
    found = {}
    for name, weights in (("v", {"v": 2.0}), ("l", {"l": -1.5}), ("both", {"v": 2.0, "l": -1.5})):
        processor = GuidedLogitsProcessor(guides, weights)
        of_texts, of_blocks = BlockScorer(processor, VOCABULARY, 0, torch.device("cpu"))(texts, blocks)
        assert bool(of_texts.any()) is (name != "l") and bool(of_blocks.any()) is (name != "v")
        found[name] = of_texts + of_blocks
    for n, text in enumerate(texts):
        for i, block in enumerate(blocks[n]):
            assert float(found["v"][n, i]) == pytest.approx(2 * state_value(value, [*text, *block]), abs=1e-4)
            logps = [
                float(torch.tensor(formulas.probabilities(expert, [*text, *block[:t]])).log()[token])
                for t, token in enumerate(block)
            ]
            assert float(found["l"][n, i]) == pytest.approx(-1.5 * sum(logps), abs=1e-3)
    torch.testing.assert_close(found["both"], found["v"] + found["l"], rtol=1e-4, atol=1e-4)


def test_guides_that_cannot_choose_blocks(tiny_model: Any) -> None:
    free = GuidedLogitsProcessor({"free": ValueGuide(make_value("policy", tiny_model), "free")})
    with pytest.raises(ValueError, match=r"value model 'free' cannot choose among blocks .*use the form 'state'"):
        BlockScorer(free, VOCABULARY, 0, torch.device("cpu"))
    broken = GuidedLogitsProcessor(Broken())
    with pytest.raises(ValueError, match="guide returned a score that is not finite"):
        BlockScorer(broken, VOCABULARY, 0, torch.device("cpu"))([[5]], [[[6], [7]]])


class Broken(BaseGuide):
    def score(self, context: GuideContext, candidates_Nk: torch.Tensor) -> torch.Tensor:
        return torch.full(candidates_Nk.shape, torch.nan)


# ---------------------------------------------------------------------------------------------------------- refusals


def test_invalid_guides(tiny_model: Any) -> None:
    with pytest.raises(ValueError, match="`output` must be one of logit, probability, log_probability, got 'odds'"):
        ClassifierGuide(classifier(), output="odds")
    with pytest.raises(ValueError, match=r"The classifier 'rm' '.*' has 3 labels.*set `label` to"):
        ClassifierGuide(classifier(3), name="rm")
    with pytest.raises(ValueError, match="has no label '7' \\(`label`\\)"):
        ClassifierGuide(classifier(3), label="7")
    with pytest.raises(ValueError, match="needs an `expert`, an `anti_expert` or both"):
        LanguageModelGuide()
    headless = classifier()
    headless.score = torch.nn.Linear(64, 1, bias=True)
    real = headless.forward

    def scaled(**kwargs: Any) -> Any:
        output = real(**kwargs)
        output.logits = output.logits * 2 + 1
        return output

    headless.forward = scaled
    with pytest.raises(ValueError, match="no score head that could be applied to its last hidden state"):
        ClassifierGuide(headless)


def test_why_cuda_graphs_cannot_use_them(tiny_model: Any) -> None:
    llm = BackboneAndHead(tiny_model)
    for guide, who in (
        (ClassifierGuide(classifier(), name="rm"), "classifier 'rm'"),
        (LanguageModelGuide(make_model(VOCABULARY), name="e"), "language model 'e'"),
        (FunctionGuide(lambda context, candidates: candidates, "f"), "function 'f'"),
    ):
        assert who in GuidedLogitsProcessor(guide).static_unsupported_reason(llm)
    guides = {"v": ValueGuide(make_value("state", tiny_model)), "c": ClassifierGuide(classifier())}
    mixed = GuidedLogitsProcessor(guides, {"v": 1.0})
    assert "classifier" in mixed.static_unsupported_reason(llm)


def test_a_text_beyond_the_positions_of_a_guide() -> None:
    guide = ClassifierGuide(gpt2_of_tokens(), label="1")
    guide.reader.context_length = 4  # type: ignore[union-attr]
    guide.reader.learned_positions = True  # type: ignore[union-attr]
    guide.score(context_of([[5, 6, 7]]), torch.tensor([[8]]))
    with pytest.raises(ValueError, match="classifier has a context of 4 tokens, and a text has 5: it has no position"):
        guide.score(context_of([[5, 6, 7, 8]]), torch.tensor([[8]]))
