# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
Cases of guided requests in vLLM's engine, in a process of its own: `python tests/vllm_engine_cases.py KIND FOLDER`.

KIND is a form of value model, or `proxy`. Writes `FOLDER/found.json`: for each case the tokens of the engine, and
those of our own decoding with the same guide and settings.
"""

import functools
import json
import os
import sys
from pathlib import Path
from typing import Any, ClassVar

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from trl_ext import ProxyModel, ValueAugmentedLogitsProcessor, ValueModel
from trl_ext.methods.proxy_rlhf.decision_process import DecisionProcess
from trl_ext.methods.proxy_rlhf.policies import proxy_logps
from trl_ext.models.backbone_and_head import BackboneAndHead


MODELS = Path(__file__).parents[1] / "recipes" / "quickstart" / "models"
TEXTS = ["The film was", "I have seen this movie twice and", "What I liked about it is", "No one in the"]
LENGTH, K, BLOCK = 24, 20, 32

Extra = dict[str, Any] | None


def random_value_model(form: str, policy: Any, tokenizer: Any, folder: Path) -> ValueModel:
    """A value model of two heads, whose values differ by a few units between candidates; saved."""
    torch.manual_seed(0)
    heads = ("helpful", "concise")
    if form == "policy":
        value = ValueModel.on_policy(policy, heads, form=form, action_rank=8)
    else:
        value = ValueModel.from_backbone(str(MODELS / "imdb-2m"), heads, form=form, action_rank=8)
    with torch.no_grad():
        value.head.weight.normal_(std=0.3)
        if form != "state":
            value.action.query.weight.normal_(std=0.3)
            value.action.actions.weight.normal_(std=0.5)
    value.config.record_tokenizer(tokenizer)
    value.save_pretrained(folder)
    return value.eval()


def random_proxy(policy: Any, folder: Path) -> ProxyModel:
    """A proxy whose decisions differ between candidates, with the process of the default settings; saved."""
    torch.manual_seed(0)
    proxy = ProxyModel.for_model(policy, DecisionProcess(feature="context", top_k=K)).eval()
    with torch.no_grad():
        proxy.actor[-1].weight.normal_(0, 3 / proxy.config.layer_sizes[-1] ** 0.5)
    proxy.save_pretrained(folder)
    return proxy


class Reference:
    """A value model in the engine, and greedy completions by transformers' `generate` with it."""

    processor = "trl_ext.vllm:ValueGuide"
    guided: ClassVar[Extra] = {"beta": "helpful=2"}
    mixed: tuple[Extra, ...] = (
        {"beta": {"helpful": 2.0}}, None, {"beta": {"helpful": 1.0, "concise": -1.0}}, {"beta": {"concise": 0.5}},
    )  # fmt: skip
    certain: ClassVar = {"temperature": 1.0, "top_k": 1}  # sampling of a single token

    def __init__(self, policy: Any, value: ValueModel, folder: Path | None = None) -> None:
        self.policy, self.value = policy, value
        self.settings = {"value_model": str(folder), "top_k": K}

    def __call__(self, prompt: list[int], beta: dict[str, float], length: int = LENGTH) -> list[int]:
        ids = torch.tensor([prompt])
        mask = torch.ones_like(ids)
        guide = ValueAugmentedLogitsProcessor(self.value, beta, K, attention_mask=mask)
        settings = {"do_sample": False, "min_new_tokens": length, "max_new_tokens": length, "pad_token_id": 1}
        output = self.policy.generate(input_ids=ids, attention_mask=mask, logits_processor=[guide], **settings)
        completion: list[int] = output[0, len(prompt) :].tolist()
        return completion

    def expected(self, prompt: list[int], extra: Extra, length: int, certain: bool) -> list[int]:
        return self(prompt, (extra or {}).get("beta", {}), length)

    def logps(self, prompt: list[int]) -> torch.Tensor:
        """Log-probabilities of the first token with the weights `guided`."""
        ids = torch.tensor([prompt])
        guide = ValueAugmentedLogitsProcessor(self.value, {"helpful": 2.0}, K, attention_mask=torch.ones_like(ids))
        with torch.no_grad():
            return guide(ids, self.policy(ids).logits[:, -1]).log_softmax(-1)[0]


class ProxyReference:
    """A proxy in the engine, and completions of our own decoding with it."""

    processor = "trl_ext.vllm:ProxyGuide"
    guided: ClassVar[Extra] = {"proxy": 1}
    mixed: tuple[Extra, ...] = ({"proxy": 1}, None, {"proxy": 1.0}, {"proxy": "1"})
    certain: ClassVar = {"temperature": 1.0, "top_p": 1e-6}  # the likeliest token after guidance

    def __init__(self, policy: Any, proxy: ProxyModel, folder: Path) -> None:
        self.policy, self.proxy, self.settings = policy, proxy, {"proxy": str(folder)}
        self.llm = BackboneAndHead(policy)

    def expected(self, prompt: list[int], extra: Extra, length: int, certain: bool) -> list[int]:
        ids = torch.tensor([prompt])
        if not extra:
            settings = {"do_sample": False, "min_new_tokens": length, "max_new_tokens": length, "pad_token_id": 1}
            output = self.policy.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **settings)
        elif certain:
            return list(self._likeliest(tuple(prompt), length))
        else:
            settings = {"greedy": True, "order": "descending", "max_new_tokens": length, "eos_token_id": []}
            output = self.proxy.generate(self.policy, ids, **settings)
        completion: list[int] = output[0, len(prompt) :].tolist()
        return completion

    @functools.cache  # noqa: B019
    def _likeliest(self, prompt: tuple[int, ...], length: int) -> tuple[int, ...]:
        """Always the likeliest token of the distribution that the decisions induce."""
        ids = list(prompt)
        for _ in range(length):
            ids.append(int(self.logps(ids).argmax()))
        return tuple(ids[len(prompt) :])

    def logps(self, prompt: list[int]) -> torch.Tensor:
        """Log-probabilities of the next token, as evaluation computes them."""
        with torch.no_grad():
            logits = self.policy(torch.tensor([prompt])).logits[0, -1]
        tokens = logits.topk(K).indices
        process = self.proxy.config.decision_process
        [found] = proxy_logps(
            self.llm, self.proxy, process, [prompt], [[[token] for token in tokens.tolist()]], pad_token_id=1
        )
        return torch.full_like(logits, -torch.inf).scatter(0, tokens, torch.cat(found))


def main(kind: str, folder: Path) -> None:
    from vllm import LLM, SamplingParams

    path, guide = str(MODELS / "imdb-2m"), folder / "guide"
    tokenizer = AutoTokenizer.from_pretrained(path)
    policy = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    reference: Any
    if kind == "proxy":
        reference = ProxyReference(policy, random_proxy(policy, guide), guide)
    else:
        reference = Reference(policy, random_value_model(kind, policy, tokenizer, guide), guide)
    engine = LLM(
        path,
        dtype="float32",
        max_model_len=256,
        max_num_seqs=8,
        max_num_batched_tokens=16,  # longer prompts are read in chunks
        block_size=BLOCK,
        num_gpu_blocks_override=12,  # of 32 tokens each: eight requests of 90 tokens do not fit
        enforce_eager=True,
        disable_log_stats=False,
        logprobs_mode="processed_logprobs",
        logits_processors=[reference.processor],
        additional_config={"trl_ext": reference.settings},
    )
    short = [tokenizer(text).input_ids for text in TEXTS]
    long = [(ids * 16)[:66] for ids in short]
    found: dict[str, Any] = {}

    def ask(case: str, prompts: list[list[int]], extras: tuple[Extra, ...], **settings: Any) -> None:
        certain = bool(settings.get("temperature"))
        settings = {"temperature": 0.0, "max_tokens": LENGTH, "ignore_eos": True} | settings
        params = [SamplingParams(extra_args=extra, **settings) for extra in extras]
        outputs = engine.generate([{"prompt_token_ids": ids} for ids in prompts], params, use_tqdm=False)
        pairs = [
            (list(output.token_ids), reference.expected(ids, extra, settings["max_tokens"], certain))
            for ids, extra, outs in zip(prompts, extras, outputs, strict=True)
            for output in outs.outputs
        ]
        found[case] = {"found": [pair[0] for pair in pairs], "expected": [pair[1] for pair in pairs]}

    mixed = reference.mixed
    ask("plain and guided", short, mixed)
    ask("chunked prefill", long, mixed)
    ask("prefix caching", long, mixed[::-1])  # all blocks of the prompts but the last are known now
    ask("n > 1", short, mixed, n=3, **reference.certain)
    preempted = preemptions(engine)
    ask("preemption", [*long, *[(ids * 16)[2:68] for ids in short]], mixed * 2, max_tokens=48)
    found["preemptions"] = preemptions(engine) - preempted
    abort(engine, long, SamplingParams, reference.guided)
    ask("after aborted requests", short, mixed)
    found["logprobs"] = logprobs(engine, reference, short[1], SamplingParams)
    folder.joinpath("found.json").write_text(json.dumps(found))


def preemptions(engine: Any) -> int:
    return sum(int(each.value) for each in engine.get_metrics() if each.name == "vllm:num_preemptions")


def abort(engine: Any, prompts: list[list[int]], sampling_params: Any, extra: Extra) -> None:
    """Guided requests that are aborted after a few steps, while prompts are being read and after."""
    params = sampling_params(temperature=0.0, max_tokens=64, ignore_eos=True, extra_args=extra)
    names = [f"aborted {i}" for i in range(len(prompts))]
    for name, ids in zip(names, prompts, strict=True):
        engine.llm_engine.add_request(name, {"prompt_token_ids": ids}, params)
    for _ in range(9):
        engine.llm_engine.step()
    engine.llm_engine.abort_request(names)
    while engine.llm_engine.has_unfinished_requests():
        engine.llm_engine.step()


def logprobs(engine: Any, reference: Any, prompt: list[int], sampling_params: Any) -> list[list[float]]:
    """For each of the likeliest tokens: log-probability of the engine, of the guided distribution, of the model."""
    params = sampling_params(temperature=1.0, max_tokens=1, logprobs=10, extra_args=reference.guided)
    [output] = engine.generate([{"prompt_token_ids": prompt}], params, use_tqdm=False)
    guided = reference.logps(prompt)
    with torch.no_grad():
        plain = reference.policy(torch.tensor([prompt])).logits[0, -1].log_softmax(-1)
    tokens = output.outputs[0].logprobs[0]
    return [[each.logprob, float(guided[token]), float(plain[token])] for token, each in tokens.items()]


if __name__ == "__main__":
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    main(sys.argv[1], Path(sys.argv[2]))
