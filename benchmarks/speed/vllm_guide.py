# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
What guidance costs inside vLLM: requests of one engine in turns, plain ones and guided ones.

    python -m benchmarks.speed.vllm_guide [--model MODEL] [--value_backbone MODEL] [--dtype float32] [--forms state]

A form is one of a value model, or `proxy`. Not a suite, as vLLM is in few environments: it prints figures, which
docs/how_to/serving_overview.md quotes. Value models and proxies have random heads, on which the time does not depend.
"plain again" shows how far two equal variants are apart. The engine is in this process and has one thread, so that CPU
seconds leave out the time in which other processes held the core.
"""

import argparse
import functools
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness.models import MODELS
from benchmarks.harness.timing import Variant, alternate, clock_of, ratio, spread


FORMS = ("state", "action", "policy", "proxy")


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed.vllm_guide", description=__doc__)
    parser.add_argument("--model", default=str(MODELS / "imdb-2m"))
    parser.add_argument("--value_backbone", default="", help="by default the model")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=FORMS)
    parser.add_argument("--requests", type=int, default=16, help="at once, the same number guided as plain")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--prompt", type=int, default=32, help="tokens of a prompt")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--form", choices=FORMS, help=argparse.SUPPRESS)  # of the process that measures
    return parser.parse_args(argv)


def save_value_model(form: str, options: argparse.Namespace, folder: str) -> None:
    """A value model with random heads."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from trl_ext import ValueModel

    torch.manual_seed(0)
    backbone = options.value_backbone or options.model
    if form == "policy":
        value = ValueModel.on_policy(AutoModelForCausalLM.from_pretrained(options.model), form=form)
    else:
        value = ValueModel.from_backbone(backbone, form=form)
    torch.nn.init.normal_(value.head.weight)
    value.config.record_tokenizer(AutoTokenizer.from_pretrained(options.model))
    value.save_pretrained(folder)


def save_proxy(options: argparse.Namespace, folder: str) -> None:
    """A new proxy."""
    from transformers import AutoModelForCausalLM

    from trl_ext import ProxyModel
    from trl_ext.methods.proxy_rlhf.decision_process import DecisionProcess

    model = AutoModelForCausalLM.from_pretrained(options.model)
    ProxyModel.for_model(model, DecisionProcess(feature="context", top_k=20)).save_pretrained(folder)


def measure(form: str, options: argparse.Namespace) -> dict[str, Any]:
    """Seconds of plain and of guided requests, and how many times longer the guided ones take."""
    from vllm import LLM, SamplingParams

    with tempfile.TemporaryDirectory() as folder:
        if form == "proxy":
            save_proxy(options, folder)
            name, settings, switch = "ProxyGuide", {"proxy": folder}, {"proxy": 1.0}
        else:
            save_value_model(form, options, folder)
            name, settings, switch = "ValueGuide", {"value_model": folder}, {"beta": 2.0}
        engine = LLM(
            options.model,
            dtype=options.dtype,
            max_model_len=256,
            max_num_seqs=options.requests,
            enforce_eager=True,
            logits_processors=[f"trl_ext.vllm:{name}"],
            additional_config={"trl_ext": settings},
        )
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(10, 4000, (options.rounds, options.requests, options.prompt), generator=generator).tolist()

        def ask(batch: int, guided: bool) -> None:
            extra = switch if guided else None
            params = SamplingParams(max_tokens=options.tokens, ignore_eos=True, extra_args=extra, seed=batch)
            engine.generate([{"prompt_token_ids": prompt} for prompt in ids[batch]], params, use_tqdm=False)

        device = torch.device("cpu")
        names = {"plain": False, "plain again": False, "guided": True}
        variants = [Variant(name, functools.partial(ask, guided=guided)) for name, guided in names.items()]
        seconds = alternate(variants, rounds=options.rounds, batches=1, device=device)
    clock = clock_of(device)
    count = options.requests * options.tokens
    return {
        "form": form,
        "tokens per second": {name: _rates(seconds[name], count) for name in names},
        "guided / plain": ratio(seconds["guided"][clock], seconds["plain"][clock]),
        "plain again / plain": ratio(seconds["plain again"][clock], seconds["plain"][clock]),
        "clock": clock,
        "load": os.getloadavg(),
    }


def _rates(seconds: dict[str, list[float]], count: int) -> dict[str, dict[str, float]]:
    return {clock: spread([count / second for second in found]) for clock, found in seconds.items()}


def main(argv: Sequence[str] | None = None) -> int:
    """Measure each form in a process of its own, as an engine leaves its state behind."""
    options = parse(argv)
    if options.form:
        print("RESULT " + json.dumps(measure(options.form, options)))
        return 0
    import subprocess

    known = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "OMP_NUM_THREADS": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}
    given = list(sys.argv[1:] if argv is None else argv)
    for form in options.forms:
        command = [sys.executable, str(Path(__file__)), *given, "--form", form]
        environment = {**os.environ, **known, "VLLM_USE_V2_MODEL_RUNNER": "0"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
        if not lines:
            print(done.stderr[-3000:], file=sys.stderr)
            return 1
        print(json.dumps(json.loads(lines[0].removeprefix("RESULT ")), indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
