# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""The chunked head against a full log-softmax in float64: values, gradients, and what is never in memory."""

import pytest
import torch
import transformers
from conftest import make_model
from torch.utils._python_dispatch import TorchDispatchMode

import trl_ext.logprobs.lm_head as head
from trl_ext.logprobs.lm_head import ChunkedLogProbs, add_fused_head, from_logits


T, D, V = 23, 16, 97

CHUNKS = {"a token a chunk": 1, "several chunks": 5 * V, "one chunk": 1 << 30}


def tensors(bias, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)

    def random(*shape, scale=1.0):
        return (scale * torch.randn(shape, generator=generator)).to(dtype).requires_grad_()

    hidden, weight, bias = random(T, D), random(V, D), random(V, scale=2.0) if bias else None
    labels = torch.randint(0, V, (T,), generator=generator)
    with torch.no_grad():
        logits = torch.nn.functional.linear(hidden.float(), weight.float(), None if bias is None else bias.float())
        labels[:4] = logits[:4].argmax(dim=1)  # some predictions are right
    return hidden, weight, bias, labels


def full(hidden, weight, bias, labels):
    """All logits at once, in float64."""
    logits = hidden.double() @ weight.double().T
    log_probs = (logits if bias is None else logits + bias.double()).log_softmax(dim=-1)
    entropy = -(log_probs.exp() * log_probs).sum(dim=-1)
    return log_probs.gather(1, labels[:, None]).squeeze(1), entropy, (log_probs.argmax(dim=-1) == labels).double()


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("chunk", CHUNKS.values(), ids=CHUNKS)
def test_values_and_gradients_equal_a_full_log_softmax(monkeypatch, chunk, bias):
    monkeypatch.setattr(head, "CHUNK_ELEMENTS", chunk)
    inputs = tensors(bias)
    found, expected = ChunkedLogProbs.apply(*inputs), full(*inputs)
    for name, one, other in zip(("log_probs", "entropy", "is_top1"), found, expected, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-5, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
    assert found[2].sum() >= 4
    leaves = [x for x in inputs[:3] if x is not None]
    direction = torch.randn(T, generator=torch.Generator().manual_seed(1))
    expected_grads = torch.autograd.grad(expected[0], leaves, direction.double())
    for one, other in zip(torch.autograd.grad(found[0], leaves, direction), expected_grads, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_a_step_along_the_gradient_makes_labels_more_likely():
    hidden, weight, _, labels = tensors(bias=False)
    before = ChunkedLogProbs.apply(hidden, weight, None, labels)[0].sum()
    (grad,) = torch.autograd.grad(before, weight)
    assert ChunkedLogProbs.apply(hidden, weight + 1e-3 * grad, None, labels)[0].sum() > before


def test_log_probs_are_nats():
    hidden, weight = torch.zeros(1, D), torch.zeros(V, D)
    log_probs, entropy, _ = ChunkedLogProbs.apply(hidden, weight, None, torch.tensor([3]))
    assert log_probs.item() == pytest.approx(-torch.tensor(float(V)).log().item())
    assert entropy.item() == pytest.approx(torch.tensor(float(V)).log().item())


def test_entropy_is_exact_where_logits_are_large_and_many():
    """lse - E[logit] cancels where logits are far from 0, and a running sum over a vocabulary loses digits."""
    generator = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(50, 8, generator=generator), torch.randn(8192, 8, generator=generator)
    bias = torch.full((8192,), -300.0)
    labels = torch.zeros(50, dtype=torch.long)
    found, expected = (f(hidden, weight, bias, labels)[1] for f in (ChunkedLogProbs.apply, full))
    # the logits themselves are rounded to 3e-5 at -300
    assert (found.double() - expected).abs().max() < 3e-5


def test_frozen_parts_get_no_gradient():
    hidden, weight, bias, labels = tensors(bias=True)
    for frozen in (weight, bias):
        frozen.requires_grad_(False)
    (found,) = torch.autograd.grad(ChunkedLogProbs.apply(hidden, weight, bias, labels)[0].sum(), hidden)
    (expected,) = torch.autograd.grad(full(hidden, weight, bias, labels)[0].sum(), hidden)
    torch.testing.assert_close(found, expected.float(), rtol=1e-4, atol=1e-5)


def test_entropy_and_top1_carry_no_gradient():
    log_probs, entropy, is_top1 = ChunkedLogProbs.apply(*tensors(bias=False))
    assert log_probs.requires_grad
    assert not entropy.requires_grad
    assert not is_top1.requires_grad


class Largest(TorchDispatchMode):
    """Records the size of the largest tensor that an operation returns."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, tuple | list) else [result]:
            if isinstance(value, torch.Tensor):
                self.elements = max(self.elements, value.numel())
        return result


def test_full_logits_are_never_in_memory(monkeypatch):
    monkeypatch.setattr(head, "CHUNK_ELEMENTS", 4 * V)
    hidden, weight, _, labels = tensors(bias=False)
    with Largest() as seen:
        full(hidden, weight, None, labels)
    assert seen.elements == T * V  # the watch works
    with Largest() as seen:
        ChunkedLogProbs.apply(hidden, weight, None, labels)[0].sum().backward()
    assert max(4 * V, V * D) <= seen.elements < T * V
    assert seen.elements == V * D  # the weight and its gradient


def test_a_models_forward_never_holds_the_logits(monkeypatch):
    monkeypatch.setattr(head, "CHUNK_ELEMENTS", 1024)
    model = make_model(1024, hidden_size=16, intermediate_size=16, num_hidden_layers=1)
    add_fused_head(model)
    ids = torch.randint(0, 1024, (4, 64), generator=torch.Generator().manual_seed(0))
    with Largest() as seen:
        model(input_ids=ids, shift_labels=ids, fused_lm_head=True).log_probs.sum().backward()
    assert seen.elements <= 4 * 64 * 64  # attention scores at most, not 4 x 64 x 1024


@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16], ids=["autocast", "bf16 weights"])
def test_bfloat16(weights):
    hidden, weight, bias, labels = tensors(bias=True, dtype=weights)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=weights == torch.float32):
        found = ChunkedLogProbs.apply(hidden, weight, bias, labels)
        plain = torch.nn.functional.linear(hidden, weight)
    assert plain.dtype == torch.bfloat16
    expected = full(hidden, weight, bias, labels)
    assert [x.dtype for x in found] == [torch.float32] * 3
    assert (found[0] - expected[0]).abs().max() < 0.1
    assert (found[1] - expected[1]).abs().max() < 0.1
    grads = torch.autograd.grad(found[0].sum(), (hidden, weight, bias))
    expected_grads = torch.autograd.grad(expected[0].sum(), (hidden, weight, bias))
    for grad, other in zip(grads, expected_grads, strict=True):
        assert grad.dtype == weights
        assert (grad.double() - other.double()).norm() < 0.02 * other.double().norm()


# ---------------------------------------------------------------------------------------------------- inside a model


def batch(vocabulary=V):
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(2, vocabulary, (3, 9), generator=generator)
    labels = ids.roll(-1, dims=1)
    labels[:, -1] = -100
    labels[0, :4] = -100
    labels[2, 6:] = -100
    return ids, labels


def expected_output(model, ids, labels):
    log_probs = model(input_ids=ids).logits.double().log_softmax(dim=-1)
    mask = labels != -100
    entropy = -(log_probs.exp() * log_probs).sum(dim=-1)
    top1 = log_probs.argmax(dim=-1) == labels
    return log_probs.gather(-1, labels.clamp(min=0)[..., None]).squeeze(-1) * mask, entropy * mask, top1 * mask


def assert_head_is_right(model):
    ids, labels = batch()
    expected = expected_output(model, ids, labels)
    expected[0].sum().backward()
    expected_grads = {name: p.grad for name, p in model.named_parameters()}
    model.zero_grad()
    add_fused_head(model)
    output = model(input_ids=ids, shift_labels=labels, fused_lm_head=True)
    found = (output.log_probs, output.entropy, output.is_top1)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.double(), other.double(), rtol=1e-4, atol=1e-5)
    output.log_probs.sum().backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected_grads[name], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("tied", [False, True])
def test_a_model_with_and_without_tied_embeddings(tied):
    model = make_model(V, tie_word_embeddings=tied)
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied
    assert_head_is_right(model)


SMALL = {"vocab_size": V, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "initializer_range": 0.2}
SMALL |= {"num_attention_heads": 4, "num_key_value_heads": 4, "bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 0}


def small(name, **changes):
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**SMALL, **changes)
    return getattr(transformers, f"{name}ForCausalLM")(config).eval()


def test_a_head_with_a_bias():
    model = small("Phi")
    with torch.no_grad():
        model.lm_head.bias.normal_()
    assert_head_is_right(model)


@pytest.mark.parametrize(
    ("name", "changes", "ours"),
    [
        ("Llama", {}, True),
        ("Gemma2", {"head_dim": 8, "final_logit_softcapping": 2.0}, False),
        ("Gemma2", {"head_dim": 8, "final_logit_softcapping": None}, True),
        ("Cohere", {"logit_scale": 0.3}, False),
        ("Cohere", {"logit_scale": 1.0}, True),
        ("Granite", {"logits_scaling": 4.0}, False),
    ],
)
def test_models_that_scale_or_cap_their_logits_use_trls_head(monkeypatch, name, changes, ours):
    model = small(name, **changes)
    assert_head_is_right(model)
    calls = []
    monkeypatch.setattr(
        ChunkedLogProbs, "apply", lambda *args, original=ChunkedLogProbs.apply: calls.append(1) or original(*args)
    )
    ids, labels = batch()
    model(input_ids=ids, shift_labels=labels, fused_lm_head=True)
    assert bool(calls) == ours


class Sharded(torch.nn.Parameter):
    """A weight that is sharded (FSDP) or quantized."""


def test_a_sharded_or_quantized_weight_uses_trls_head(monkeypatch):
    model = make_model(V)
    ids, labels = batch()
    add_fused_head(model)
    expected = model(input_ids=ids, shift_labels=labels, fused_lm_head=True)
    model.lm_head.weight = Sharded(model.lm_head.weight.detach())
    monkeypatch.setattr(ChunkedLogProbs, "apply", None)  # a call would fail
    found = model(input_ids=ids, shift_labels=labels, fused_lm_head=True)
    torch.testing.assert_close(found.log_probs, expected.log_probs)
    torch.testing.assert_close(found.entropy, expected.entropy)
    assert not head._is_plain_cpu(model.lm_head)


def test_a_zero3_weight_uses_trls_head():
    model = make_model(V)
    assert head._is_plain_cpu(model.lm_head)
    model.lm_head.weight.ds_id = 0
    assert not head._is_plain_cpu(model.lm_head)


def test_a_batch_without_labels_is_differentiable():
    model = make_model(V)
    add_fused_head(model)
    ids, labels = batch()
    output = model(input_ids=ids, shift_labels=torch.full_like(labels, -100), fused_lm_head=True)
    assert output.log_probs.shape == ids.shape
    assert output.log_probs.eq(0).all()
    output.log_probs.sum().backward()
    grads = [p.grad for p in model.parameters()]
    assert all(grad is not None and grad.eq(0).all() for grad in grads)


def test_other_calls_do_not_change():
    model, plain = make_model(V), make_model(V)
    add_fused_head(model)
    ids, labels = batch()
    torch.testing.assert_close(model(input_ids=ids).logits, plain(input_ids=ids).logits)
    torch.testing.assert_close(model(input_ids=ids, labels=ids).loss, plain(input_ids=ids, labels=ids).loss)
    torch.testing.assert_close(
        model(input_ids=ids, labels=ids, shift_labels=labels).loss,
        plain(input_ids=ids, labels=ids, shift_labels=labels).loss,
    )
    generate = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    assert model.generate(ids, **generate).equal(plain.generate(ids, **generate))


def test_the_head_is_added_once():
    model = make_model(V)
    add_fused_head(model)
    forward = model.forward
    add_fused_head(model)
    assert model.forward == forward


@pytest.mark.parametrize("none", [False, True], ids=["some labels", "no labels"])
def test_from_full_logits_equals_the_chunked_head(none):
    model = make_model(V)
    ids, labels = batch()
    labels = torch.full_like(labels, -100) if none else labels
    logits = model(input_ids=ids).logits
    found, expected = from_logits(logits, labels), expected_output(model, ids, labels)
    for one, other in zip((found.log_probs, found.entropy, found.is_top1), expected, strict=True):
        torch.testing.assert_close(one.double(), other.double(), rtol=1e-5, atol=1e-5)
    (grad,) = torch.autograd.grad(found.log_probs.sum(), logits, retain_graph=True)
    (expected_grad,) = torch.autograd.grad(
        expected_output(lambda input_ids: _Logits(logits), ids, labels)[0].sum(), logits
    )
    torch.testing.assert_close(grad, expected_grad, rtol=1e-5, atol=1e-5)
    assert not found.entropy.requires_grad


class _Logits:
    def __init__(self, logits):
        self.logits = logits


def test_labels_that_are_not_shifted_are_for_trls_head():
    """A model can be trained by a trainer of TRL afterwards, which may pass `labels`."""
    from trl_ext.upstream import add_fused_lm_head

    ids = torch.arange(2, 14).reshape(2, 6)
    labels = ids.masked_fill(ids % 5 == 0, -100)
    ours, theirs = make_model(60), make_model(60)
    add_fused_head(ours)
    add_fused_lm_head(theirs, outputs=("log_probs", "entropy", "is_top1"))
    found, expected = (m(input_ids=ids, labels=labels, fused_lm_head=True).log_probs for m in (ours, theirs))
    torch.testing.assert_close(found, expected)
