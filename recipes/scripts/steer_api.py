# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
VAS behind an API: guides a model that a server has, with a value model on your machine.

The server sees prompts and beginnings of answers; no weights are needed. Without `--base_url` the script starts
`toy_server.py`, a server of a small model that speaks the same protocol.

Cost: seconds on two CPU cores, without a network. Prints the answer at each weight, with its KL to the server's own
distribution, and the number of requests: one for each token. At weight 0 the KL is not 0, because only the 20
likeliest tokens of each step are candidates.

    python recipes/scripts/steer_local.py  # once: trains the value model
    python recipes/scripts/steer_api.py
    python recipes/scripts/steer_api.py --base_url http://localhost:8000/v1 --model M --tokenizer M --value_model V
"""

import argparse
import sys
from pathlib import Path

from transformers import AutoTokenizer

from trl_ext import Endpoint, EndpointGuide, GenerationSettings, ValueModel


SCRIPTS = Path(__file__).resolve().parent
BASE = str(SCRIPTS.parent / "quickstart/models/imdb-2m")

parser = argparse.ArgumentParser(description="Guide a server's model with a value model.")
parser.add_argument("--base_url", help="address of the server with its version; by default a toy server is started")
parser.add_argument("--model", default="imdb-2m", help="name of the model on the server")
parser.add_argument("--tokenizer", default=BASE, help="tokenizer of the server's model")
parser.add_argument("--value_model", default="outputs/steer_local", help="saved by steer_local.py or `trl-ext vas`")
parser.add_argument("--mode", default="token", choices=["token", "block"], help="block: no log-probabilities needed")
parser.add_argument("--prompt", default="This film")
parser.add_argument("--beta", type=float, nargs="+", default=[0.0, 4.0], help="weights of the values")
parser.add_argument("--max_completion_length", type=int, default=48)
flags = parser.parse_args()

if not Path(flags.value_model).is_dir():
    sys.exit(f"{flags.value_model} is missing: run steer_local.py first, or name a value model with --value_model")
if flags.base_url is None:
    sys.path.insert(0, str(SCRIPTS))
    import toy_server

    flags.base_url = toy_server.start(BASE)

endpoint = Endpoint(flags.base_url, flags.model)
guide = EndpointGuide(
    endpoint,
    ValueModel.from_pretrained(flags.value_model),
    beta=0.0,  # replaced by that of each call
    tokenizer=AutoTokenizer.from_pretrained(flags.tokenizer),
    mode=flags.mode,
)
settings = GenerationSettings(num_generations=1, max_completion_length=flags.max_completion_length)
for beta in flags.beta:
    answer = guide.answer(flags.prompt, settings, beta=beta)
    print(f"beta {beta:g}, KL {answer.kl:.1f}: {flags.prompt}{answer.completion.text}")
print(f"{endpoint.cost.requests} requests")
