# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
Cases of guided requests in vLLM's engine, in a process of its own: `python tests/vllm_engine_cases.py FORM FOLDER`.

Writes `FOLDER/found.json`: for each case the tokens of the engine, and those of transformers' `generate` with the same
value model and weight.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from trl_ext import ValueAugmentedLogitsProcessor, ValueModel


MODELS = Path(__file__).parents[1] / "recipes" / "quickstart" / "models"
TEXTS = ["The film was", "I have seen this movie twice and", "What I liked about it is", "No one in the"]
LENGTH, K, BLOCK = 24, 20, 32


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


class Reference:
    """Greedy completions by transformers' `generate`."""

    def __init__(self, policy: Any, value: ValueModel) -> None:
        self.policy, self.value = policy, value

    def __call__(self, prompt: list[int], beta: dict[str, float], length: int = LENGTH) -> list[int]:
        ids = torch.tensor([prompt])
        mask = torch.ones_like(ids)
        guide = ValueAugmentedLogitsProcessor(self.value, beta, K, attention_mask=mask)
        settings = {"do_sample": False, "min_new_tokens": length, "max_new_tokens": length, "pad_token_id": 1}
        output = self.policy.generate(input_ids=ids, attention_mask=mask, logits_processor=[guide], **settings)
        completion: list[int] = output[0, len(prompt) :].tolist()
        return completion


def main(form: str, folder: Path) -> None:
    from vllm import LLM, SamplingParams

    path = str(MODELS / "imdb-2m")
    tokenizer = AutoTokenizer.from_pretrained(path)
    policy = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    value = random_value_model(form, policy, tokenizer, folder / "value")
    reference = Reference(policy, value)
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
        logits_processors=["trl_ext.vllm:ValueGuide"],
        additional_config={"trl_ext": {"value_model": str(folder / "value"), "top_k": K}},
    )
    short = [tokenizer(text).input_ids for text in TEXTS]
    long = [(ids * 16)[:66] for ids in short]
    found: dict[str, Any] = {}

    def ask(case: str, prompts: list[list[int]], betas: list[dict[str, float]], **settings: Any) -> None:
        settings = {"temperature": 0.0, "max_tokens": LENGTH, "ignore_eos": True} | settings
        params = [SamplingParams(extra_args={"beta": beta} if beta else None, **settings) for beta in betas]
        outputs = engine.generate([{"prompt_token_ids": ids} for ids in prompts], params, use_tqdm=False)
        pairs = [
            (list(output.token_ids), reference(ids, beta, settings["max_tokens"]))
            for ids, beta, outs in zip(prompts, betas, outputs, strict=True)
            for output in outs.outputs
        ]
        found[case] = {"found": [pair[0] for pair in pairs], "expected": [pair[1] for pair in pairs]}

    mixed = [{"helpful": 2.0}, {}, {"helpful": 1.0, "concise": -1.0}, {"concise": 0.5}]
    ask("plain and guided", short, mixed)
    ask("chunked prefill", long, mixed)
    ask("prefix caching", long, mixed[::-1])  # all blocks of the prompts but the last are known now
    ask("n > 1", short, mixed, n=3, temperature=1.0, top_k=1)
    preempted = preemptions(engine)
    ask("preemption", [*long, *[(ids * 16)[2:68] for ids in short]], mixed * 2, max_tokens=48)
    found["preemptions"] = preemptions(engine) - preempted
    abort(engine, long, SamplingParams)
    ask("after aborted requests", short, mixed)
    found["logprobs"] = logprobs(engine, policy, value, short[1], SamplingParams)
    folder.joinpath("found.json").write_text(json.dumps(found))


def preemptions(engine: Any) -> int:
    return sum(int(each.value) for each in engine.get_metrics() if each.name == "vllm:num_preemptions")


def abort(engine: Any, prompts: list[list[int]], sampling_params: Any) -> None:
    """Guided requests that are aborted after a few steps, while prompts are being read and after."""
    params = sampling_params(temperature=0.0, max_tokens=64, ignore_eos=True, extra_args={"beta": "helpful=2"})
    names = [f"aborted {i}" for i in range(len(prompts))]
    for name, ids in zip(names, prompts, strict=True):
        engine.llm_engine.add_request(name, {"prompt_token_ids": ids}, params)
    for _ in range(9):
        engine.llm_engine.step()
    engine.llm_engine.abort_request(names)
    while engine.llm_engine.has_unfinished_requests():
        engine.llm_engine.step()


def logprobs(engine: Any, policy: Any, value: Any, prompt: list[int], sampling_params: Any) -> list[float]:
    """The engine's log-probability of its first guided token, and that of the guided distribution."""
    params = sampling_params(temperature=0.0, max_tokens=1, logprobs=1, extra_args={"beta": "helpful=2"})
    [output] = engine.generate([{"prompt_token_ids": prompt}], params, use_tqdm=False)
    token = output.outputs[0].token_ids[0]
    ids = torch.tensor([prompt])
    guide = ValueAugmentedLogitsProcessor(value, {"helpful": 2.0}, K, attention_mask=torch.ones_like(ids))
    with torch.no_grad():
        plain = policy(ids).logits[:, -1]
        guided = guide(ids, plain).log_softmax(-1)
    return [
        output.outputs[0].logprobs[0][token].logprob, float(guided[0, token]), float(plain.log_softmax(-1)[0, token])
    ]  # fmt: skip


if __name__ == "__main__":
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    main(sys.argv[1], Path(sys.argv[2]))
