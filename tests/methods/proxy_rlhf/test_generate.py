# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0
"""ProxyModel: `generate` and all it takes, what it refuses, storage, and the command line's policies."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make_model, make_tokenizer
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    GenerationConfig,
    GPT2Config,
    GPT2LMHeadModel,
    Llama4TextConfig,
    OPTConfig,
    T5Config,
    T5ForConditionalGeneration,
)

from trl_ext import ProxyConfig, ProxyModel, ValueModel
from trl_ext.cli.main import main
from trl_ext.generation.streaming import TextStream
from trl_ext.generation_settings import GenerationSettings
from trl_ext.inference.policy import Decoding
from trl_ext.methods.proxy_rlhf.decision_process import DecisionProcess
from trl_ext.methods.proxy_rlhf.model import default_layer_sizes, llm_digest
from trl_ext.methods.proxy_rlhf.policies import ProxyDecoding, proxy_policy, untrained


TEXTS = ["the film", "a story of music with", "we"]


@pytest.fixture
def tokenizer() -> Any:
    return make_tokenizer()


@pytest.fixture
def model(tokenizer: Any) -> Any:
    return make_model(len(tokenizer))


def make_proxy(model: Any, **fields: Any) -> ProxyModel:
    torch.manual_seed(0)
    proxy = ProxyModel.for_model(model, DecisionProcess(**{"top_k": 6} | fields), layer_sizes=[16]).eval()
    with torch.no_grad():
        proxy.actor[-1].weight.normal_(0, 1)
    return proxy


def test_types_of_prompts(model: Any, tokenizer: Any) -> None:
    """Text, a tokenizer's output, tensors and lists of ids give the same completions, batched or one by one."""
    proxy = make_proxy(model)
    tokenizer.padding_side = "left"
    batch = tokenizer(TEXTS, return_tensors="pt", padding=True)
    lists = [tokenizer(text)["input_ids"] for text in TEXTS]
    common = {"max_new_tokens": 6, "seed": 3, "tokenizer": tokenizer}
    expected = proxy.generate(model, TEXTS, **common)
    for given in (batch, lists):
        assert torch.equal(proxy.generate(model, given, **common), expected)
    assert torch.equal(
        proxy.generate(model, batch["input_ids"], attention_mask=batch["attention_mask"], **common), expected
    )
    assert torch.equal(proxy.generate(model, **batch, **common), expected)
    assert torch.equal(proxy.generate(model, TEXTS, batch_size=1, **common), expected)
    assert torch.equal(expected[:, : batch["input_ids"].shape[1]], batch["input_ids"])
    torch.manual_seed(5)
    first = proxy.generate(model, TEXTS[0], tokenizer=tokenizer, max_new_tokens=6)
    torch.manual_seed(5)
    assert torch.equal(first, proxy.generate(model, TEXTS[0], tokenizer=tokenizer, max_new_tokens=6))


def test_models_in_training_mode(model: Any, tokenizer: Any) -> None:
    """Completions are those without dropout and checkpointing, and the mode of the model is restored."""
    proxy = make_proxy(model)
    common = {"max_new_tokens": 6, "seed": 3, "tokenizer": tokenizer}
    expected = proxy.generate(model, TEXTS, **common)
    model.config.attention_dropout = 0.5
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.5
    model.gradient_checkpointing_enable()
    model.train()
    proxy.train()
    assert torch.equal(proxy.generate(model, TEXTS, **common), expected)
    assert model.training and proxy.training


def test_head_smaller_than_the_vocabulary(model: Any) -> None:
    """There are no more candidates than the head has tokens."""
    model.lm_head = torch.nn.Linear(64, 4, bias=False)
    found = make_proxy(model).generate(model, [[100, 9]], max_new_tokens=5, eos_token_id=0)
    assert int(found[0, 2:].max()) < 4


def test_chat(model: Any) -> None:
    chat = make_tokenizer(chat=True)
    found = make_proxy(model).generate(
        model, [{"role": "user", "content": "the film"}], tokenizer=chat, max_new_tokens=3, return_dict=True
    )
    assert len(found.sequences) == 1


def test_counts_texts_and_several_completions(model: Any, tokenizer: Any) -> None:
    proxy = make_proxy(model)
    found = proxy.generate(
        model, TEXTS, tokenizer=tokenizer, max_new_tokens=8, num_return_sequences=3, return_dict=True, seed=0
    )
    assert len(found.texts) == len(found.sequences) == 9
    assert len({*found.texts[:3]}) > 1
    taken = found.lengths  # one examined candidate per token is accepted, unless all were rejected
    assert torch.equal(found.examined - found.rejected, taken - found.forced)
    width = found.sequences.shape[1] - found.lengths.max()
    for row, length, text in zip(found.sequences, found.lengths, found.texts, strict=True):
        assert tokenizer.decode(row[width : width + length], skip_special_tokens=True) == text


def test_max_candidates(model: Any, tokenizer: Any) -> None:
    proxy = make_proxy(model)
    with torch.no_grad():
        proxy.actor[-1].bias.fill_(-100.0)
    found = proxy.generate(model, TEXTS, tokenizer=tokenizer, max_new_tokens=5, max_candidates=2, return_dict=True)
    assert torch.equal(found.examined, 2 * found.lengths)
    assert torch.equal(found.forced, found.lengths)


def test_streaming_and_stop_strings(model: Any, tokenizer: Any) -> None:
    proxy = make_proxy(model)
    whole = proxy.generate(model, TEXTS[0], tokenizer=tokenizer, max_new_tokens=20, seed=1, return_dict=True)
    pieces: list[str] = []
    stream = TextStream(tokenizer, pieces.append)
    proxy.generate(model, TEXTS[0], tokenizer=tokenizer, max_new_tokens=20, seed=1, streamer=stream)
    stream.finish(whole.texts[0])
    assert "".join(pieces) == whole.texts[0]
    assert len(pieces) > 3
    stop = whole.texts[0][len(whole.texts[0]) // 2 :][:2]
    cut = proxy.generate(
        model, TEXTS[0], tokenizer=tokenizer, max_new_tokens=20, seed=1, stop_strings=[stop], return_dict=True
    )
    assert stop in cut.texts[0]
    assert whole.texts[0].startswith(cut.texts[0])
    assert len(cut.texts[0]) < len(whole.texts[0])
    assert cut.ended.tolist() == [True]


def test_a_proxy_in_a_folder_and_one_that_is_not_there(model: Any, tmp_path: Path) -> None:
    make_proxy(model).save_pretrained(tmp_path / "run" / "proxy")
    assert isinstance(ProxyModel.from_pretrained(tmp_path / "run", subfolder="proxy"), ProxyModel)
    with pytest.raises(OSError, match=r"Cannot load the proxy .*no folder 'poxy'"):
        ProxyModel.from_pretrained(tmp_path / "run", subfolder="poxy")
    for path, message in (("./nothere", "no local directory"), (str(tmp_path), "no model in")):
        with pytest.raises(OSError, match=f"Cannot load the proxy '{path}'.*{message}"):
            ProxyDecoding(proxy_name_or_path=[path]).check()


def test_saving_and_loading(model: Any, tmp_path: Path) -> None:
    proxy = make_proxy(model, order="descending", temperature=0.7)
    proxy.save_pretrained(tmp_path)
    for loaded in (ProxyModel.from_pretrained(tmp_path), AutoModel.from_pretrained(tmp_path)):
        assert isinstance(loaded, ProxyModel)
        assert loaded.config.decision_process == DecisionProcess(top_k=6, order="descending", temperature=0.7)
        for name, value in proxy.state_dict().items():
            assert torch.equal(loaded.state_dict()[name], value), name
    assert [path.name for path in tmp_path.glob("*.safetensors")] == ["model.safetensors"]


def test_error_names_the_other_model(tokenizer: Any, model: Any, caplog: pytest.LogCaptureFixture) -> None:
    model.config._name_or_path = "org/right"
    proxy = make_proxy(model)
    narrow = make_model(len(tokenizer), hidden_size=32)
    narrow.config._name_or_path = "org/narrow"
    with pytest.raises(ValueError, match=r"'org/right'.*64.*'org/narrow'.*32"):
        proxy.generate(narrow, TEXTS, tokenizer=tokenizer)
    other = make_model(len(tokenizer), seed=1)
    other.config._name_or_path = "org/other"
    with pytest.raises(ValueError, match=r"'org/right'.*'org/other'.*other weights"):
        proxy.generate(other, TEXTS, tokenizer=tokenizer)
    proxy.generate(other, TEXTS, tokenizer=tokenizer, max_new_tokens=2, allow_other_model=True)
    assert "may not transfer" in caplog.text


def test_digest_identifies_the_model(model: Any, tiny_model_dir: str) -> None:
    """A part of it is equal in any precision and in 4 or 8 bits; no part is with an adapter or for another model."""

    def load(**settings: Any) -> Any:
        return AutoModelForCausalLM.from_pretrained(tiny_model_dir, **settings)

    def parts(model: Any) -> set[str]:
        return set(llm_digest(model).split("-"))

    exact, others = parts(load(dtype=torch.float32)), []
    for dtype in (torch.bfloat16, torch.float16):
        others.append(load(dtype=dtype))
        for bits in ({"load_in_4bit": True, "bnb_4bit_compute_dtype": dtype}, {"load_in_8bit": True}):
            others.append(load(dtype=dtype, quantization_config=BitsAndBytesConfig(**bits)))
    assert all(exact & parts(other) for other in others)
    lora = get_peft_model(load(), LoraConfig(target_modules="all-linear", init_lora_weights=False))
    assert not exact & parts(lora)
    assert not exact & parts(make_model(load().config.vocab_size, seed=1))


def test_language_model_with_an_adapter(model: Any, tokenizer: Any) -> None:
    lora = get_peft_model(model, LoraConfig(r=8, target_modules="all-linear", init_lora_weights=False)).eval()
    proxy = make_proxy(lora, order="descending")
    with torch.no_grad():
        proxy.actor[-1].bias.fill_(100.0)
    found = proxy.generate(lora, TEXTS[0], tokenizer=tokenizer, max_new_tokens=8)
    plain = lora.generate(**tokenizer(TEXTS[0], return_tensors="pt"), max_new_tokens=8, do_sample=False)
    assert torch.equal(found, plain)


def test_language_model_loaded_in_four_bits_by_transformers(tokenizer: Any, tmp_path: Path) -> None:
    """On CPUs with bfloat16, bitsandbytes would repack its layers for a kernel that does not support this width."""
    pytest.importorskip("bitsandbytes")
    make_model(len(tokenizer), intermediate_size=136).save_pretrained(tmp_path)
    four = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.float32)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=four, device_map={"": "cpu"})
    layers = [module for module in model.modules() if hasattr(module, "support_avx512bf16_for_cpu")]
    assert layers
    make_proxy(model).generate(model, TEXTS, tokenizer=tokenizer, max_new_tokens=3)
    assert not any(layer.support_avx512bf16_for_cpu for layer in layers)


def test_other_architectures(tokenizer: Any) -> None:
    torch.manual_seed(0)
    gpt2 = GPT2LMHeadModel(
        GPT2Config(vocab_size=60, n_embd=32, n_layer=2, n_head=2, n_positions=64, bos_token_id=1, eos_token_id=1)
    ).eval()
    proxy = make_proxy(gpt2, order="descending")
    with torch.no_grad():
        proxy.actor[-1].bias.fill_(100.0)
    ids = torch.tensor([[5, 6, 7]])
    assert torch.equal(
        proxy.generate(gpt2, ids, max_new_tokens=8),
        gpt2.generate(ids, max_new_tokens=8, do_sample=False, pad_token_id=1),
    )
    with pytest.raises(ValueError, match="no backbone below a language model head"):
        proxy.generate(gpt2.transformer, ids, allow_other_model=True)


def test_widths_and_names_of_other_architectures() -> None:
    """OPT-350m's last hidden state is narrower than its layers; Llama 4 has its backbone under another name."""
    sizes = {"vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    narrow = OPTConfig(**sizes, ffn_dim=48, word_embed_proj_dim=16, do_layer_norm_before=False)
    renamed = Llama4TextConfig(
        **sizes, num_key_value_heads=2, head_dim=8, intermediate_size=48, intermediate_size_mlp=48, num_local_experts=2
    )
    for config, width in ((narrow, 16), (renamed, 32)):
        model = AutoModelForCausalLM.from_config(config).eval()
        proxy = make_proxy(model, order="descending")
        assert proxy.config.llm_hidden_size == width
        with torch.no_grad():
            proxy.actor[-1].bias.fill_(100.0)
        ids = torch.tensor([[5, 6, 7]])
        expected = model.generate(ids, max_new_tokens=4, do_sample=False, pad_token_id=1, eos_token_id=None)
        assert torch.equal(proxy.generate(model, ids, max_new_tokens=4, eos_token_id=[]), expected)


def test_adapters_of_others_on_the_weights(model: Any) -> None:
    """A proxy belongs to the adapter that is active, wherever a value model has put another one."""
    config = {"r": 2, "init_lora_weights": False}
    policy = get_peft_model(model, LoraConfig(target_modules=["v_proj"], **config))
    proxy = make_proxy(policy)
    ValueModel.on_policy(policy, peft_config=LoraConfig(target_modules=["q_proj"], **config))
    proxy.check_model(policy)
    policy.add_adapter("other", LoraConfig(target_modules=["v_proj"], **config))
    policy.set_adapter("other")
    with pytest.raises(ValueError, match="which has other weights"):
        proxy.check_model(policy)


def test_encoder_decoders_are_refused() -> None:
    model = T5ForConditionalGeneration(T5Config(vocab_size=60, d_model=16, d_ff=16, num_layers=1, num_heads=2, d_kv=8))
    with pytest.raises(ValueError, match=r"T5ForConditionalGeneration is an encoder-decoder.*use a decoder-only"):
        ProxyModel.for_model(model).generate(model, torch.tensor([[5, 6]]))


def test_proxy_is_moved_to_the_model(model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Loaded on the CPU for a model on a GPU: by its own `generate` and as a policy. The meta device holds no data."""
    proxy = make_proxy(model)
    moved = []
    monkeypatch.setattr(ProxyModel, "to", lambda self, device: moved.append(str(device)) or self)
    proxy.generate(model, torch.tensor([[5, 6]]), max_new_tokens=2)
    assert not moved
    policy = proxy_policy(model, tokenizer, proxy)
    monkeypatch.setattr(proxy, "parameters", lambda: iter([torch.zeros(1, device="meta")]))
    proxy.generate(model, torch.tensor([[5, 6]]), max_new_tokens=2)
    policy.generate([[5, 6]], GenerationSettings(num_generations=1, max_completion_length=2))
    assert moved[-2:] == ["cpu", "cpu"]


def test_generation_configs(model: Any) -> None:
    """Lengths and counts of a config that is passed; the model's own suppressed tokens are those of no training."""
    proxy, ids = make_proxy(model), torch.tensor([[5, 6, 7]])
    config = GenerationConfig(max_length=8, num_return_sequences=3, do_sample=True)
    assert proxy.generate(model, ids, generation_config=config, eos_token_id=[]).shape == (3, 8)
    assert proxy.generate(model, ids, generation_config=config, num_return_sequences=1, max_new_tokens=2).shape[0] == 1
    expected = proxy.generate(model, ids, max_new_tokens=6, seed=3)
    model.generation_config.suppress_tokens = expected[0, 3:].tolist()
    assert torch.equal(proxy.generate(model, ids, max_new_tokens=6, seed=3), expected)
    with pytest.raises(ValueError, match=r"has no 'guidance_scale', 'num_beams', 'suppress_tokens', which"):
        config = GenerationConfig(num_beams=2, suppress_tokens=[5], guidance_scale=1.5, temperature=0.5, top_k=3)
        proxy.generate(model, ids, generation_config=config)
    with pytest.raises(ValueError, match="takes no 'assistant_model'"):
        proxy.generate(model, ids, assistant_model=model)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"top_k": 1}, "nothing to decide"),
        ({"beams": 3}, "takes no 'beams'"),
        ({"feature": "context"}, "takes no 'feature'"),
        ({"stop_strings": "x", "tokenizer": None, "inputs": [[5]]}, "`stop_strings` need `tokenizer`"),
        ({"tokenizer": None}, "need `tokenizer`"),
        ({"inputs": None}, "no prompts"),
        ({"inputs": []}, "no prompts"),
        ({"inputs": [list(range(3, 60)) * 5]}, "fills the model's context of 256"),
        ({"streamer": object()}, "one completion, but 3"),
        ({"inputs": [[5], [7, 500]]}, "Prompt 1 has token 500, but the vocabulary"),
        ({"max_new_tokens": 0}, "`max_new_tokens` must be at least 1, got 0"),
        ({"max_new_tokens": -1}, "`max_new_tokens` must be at least 1"),
        ({"max_new_tokens": "5"}, "`max_new_tokens` must be a whole number, got '5'"),
        ({"top_k": 2.5}, "`top_k` must be a whole number, got 2.5"),
        ({"temperature": "a"}, "`temperature` must be a number, got 'a'"),
        ({"temperature": float("nan")}, "`temperature` must be a number, got nan"),
        ({"num_return_sequences": 0}, "`num_return_sequences` must be at least 1"),
    ],
)
def test_invalid_arguments(model: Any, tokenizer: Any, given: dict[str, Any], message: str) -> None:
    arguments = {"inputs": TEXTS, "tokenizer": tokenizer} | given
    with pytest.raises(ValueError, match=message):
        make_proxy(model).generate(model, arguments.pop("inputs"), **arguments)


def test_default_length_of_completions(model: Any, tokenizer: Any) -> None:
    proxy, common = make_proxy(model), {"tokenizer": tokenizer, "eos_token_id": 10_000, "seed": 1, "return_dict": True}
    config = GenerationConfig(max_new_tokens=3)
    assert proxy.generate(model, TEXTS[:1], generation_config=config, **common).lengths.tolist() == [3]
    found = proxy.generate(model, TEXTS[:1], generation_config=config, max_new_tokens=5, **common)
    assert found.lengths.tolist() == [5]


@pytest.mark.parametrize(("sizes", "message"), [([0], "at least 1, got 0"), ([16, -2], "1, got -2"), ([2.5], "whole")])
def test_invalid_layer_sizes(model: Any, sizes: list[Any], message: str) -> None:
    with pytest.raises(ValueError, match=rf"`layer_sizes.*{message}"):
        ProxyModel.for_model(model, layer_sizes=sizes)


def test_share_of_parameters() -> None:
    """Below 1 % for language models of at least a billion parameters."""
    for width, parameters in [(2048, 1.24e9), (4096, 8.0e9), (1536, 1.5e9)]:
        proxy = ProxyModel(ProxyConfig(llm_hidden_size=width))
        assert sum(p.numel() for p in proxy.parameters()) < 0.01 * parameters
    assert default_layer_sizes(4096) == [1024, 256]
    rate = ProxyModel(ProxyConfig(llm_hidden_size=64, initial_accept_rate=0.8)).accept_logits(torch.randn(100, 64))
    assert float(rate.sigmoid().mean()) == pytest.approx(0.8, abs=0.02)


# ------------------------------------------------------------------------------------------------------ policies


def test_policy(model: Any, tokenizer: Any) -> None:
    proxy = make_proxy(model)
    policy = proxy_policy(model, tokenizer, proxy, batch_size=4)
    prompts = [tokenizer(text)["input_ids"] for text in TEXTS]
    settings = GenerationSettings(num_generations=3, max_completion_length=6)
    torch.manual_seed(0)
    groups = policy.generate(prompts, settings)
    assert [len(group) for group in groups] == [3, 3, 3]
    assert policy.logps is not None
    logps = policy.logps(prompts, [[c.ids for c in group] for group in groups])
    assert all(
        bool(x.isfinite().all()) and len(x) == len(c.ids)
        for g, h in zip(logps, groups, strict=True)
        for x, c in zip(g, h, strict=True)
    )
    assert proxy_policy(model, tokenizer, proxy, DecisionProcess(top_k=6, max_candidates=3)).logps is None
    assert proxy_policy(model, tokenizer, proxy, greedy=True).logps is None
    greedy = GenerationSettings(num_generations=1, max_completion_length=6, temperature=0.0)
    assert policy.generate(prompts, greedy) == policy.generate(prompts, greedy)
    pieces: list[str] = []
    assert policy.stream is not None
    completion = policy.stream(
        prompts[0], GenerationSettings(num_generations=1, max_completion_length=8), pieces.append
    )
    assert "".join(pieces) == completion.text
    with pytest.raises(ValueError, match="num_beams"):
        policy.generate(prompts, GenerationSettings(num_generations=1, num_beams=2))


def test_flags() -> None:
    assert isinstance(ProxyDecoding(), Decoding)
    assert not ProxyDecoding().active
    assert ProxyDecoding(proxy_name_or_path=["x"]).active
    with pytest.raises(OSError, match=r"Cannot load the proxy './misspelt'"):
        ProxyDecoding(proxy_name_or_path=["./misspelt"]).check()
    with pytest.raises(ValueError, match="proxy_top_k"):
        ProxyDecoding(proxy_top_k=1).check()
    with pytest.raises(ValueError, match="order"):
        ProxyDecoding(proxy_order="random").check()


def test_commands_with_a_proxy(tiny_model_dir: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float32)
    make_proxy(model).save_pretrained(tmp_path / "proxy")
    common = ["--model_name_or_path", tiny_model_dir, "--proxy_name_or_path", str(tmp_path / "proxy")]
    assert main(["generate", *common, "--prompt", "the film", "--max_completion_length", "5"]) == 0
    capsys.readouterr()
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in TEXTS))
    report = tmp_path / "report.json"
    evaluate = [
        "evaluate", *common, "--base_model_name_or_path", tiny_model_dir, "--dataset_name", str(prompts),
        "--reward_funcs", "conftest:letter_reward", "--max_completion_length", "5", "--num_generations", "2",
        "--output_file", str(report),
    ]  # fmt: skip
    assert main(evaluate) == 0
    base, untrained, trained = json.loads(report.read_text())["models"]
    assert base["model"] == tiny_model_dir
    assert untrained["model"] == untrained["series"] == f"{tiny_model_dir} + untrained proxy, top_k 6"
    assert trained["model"] == trained["series"] == f"{tiny_model_dir} + proxy"
    assert trained["start"] == untrained["model"]
    assert trained["method"] == untrained["method"] == "Proxy-RLHF"
    assert trained["truncation"] == untrained["truncation"] == "top-k 6"
    assert untrained["kl"] > 0 and trained["kl"] > 0


def test_the_untrained_policy_of_a_proxy(model: Any, tokenizer: Any, tmp_path: Path) -> None:
    """It accepts each candidate with the initial rate; proxies of one process have one, and greedy ones have none."""
    for name, process in (("a", DecisionProcess()), ("b", DecisionProcess()), ("c", DecisionProcess(top_k=5))):
        proxy = ProxyModel.for_model(model, process, layer_sizes=[16], initial_accept_rate=0.8)
        proxy.save_pretrained(tmp_path / name)
    paths = [str(tmp_path / name) for name in "abc"]
    decoding = ProxyDecoding(proxy_name_or_path=paths)
    found = decoding.untrained_policies(model, tokenizer, name="m", batch_size=4)
    names = ["m + untrained proxy, initial_accept_rate 0.8", "m + untrained proxy, top_k 5, initial_accept_rate 0.8"]
    assert [policy.name for policy in found] == names
    trained = decoding.policies(model, tokenizer, name="m", batch_size=4)
    assert [policy.start for policy in trained] == [names[0], names[0], names[1]]
    assert [policy.series for policy in trained] == ["m + a", "m + b", "m + c"]
    assert [policy.truncation for policy in trained] == ["top-k 20", "top-k 20", "top-k 5"]
    proxy = untrained(ProxyModel.from_pretrained(paths[0]).config)
    rates = proxy.accept_logits(torch.randn(3, proxy.config.llm_hidden_size)).sigmoid()
    assert rates.tolist() == pytest.approx([0.8] * 3)
    assert not ProxyDecoding(proxy_name_or_path=paths, proxy_greedy=True).untrained_policies(
        model, tokenizer, name="m", batch_size=4
    )
