# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
A server of a small model for `steer_api.py`: the part of OpenAI's completions API that guidance needs, with the names
that vLLM gives tokens (`token_id:17`).

One request at a time, no batching, no keys: for trying things out on one machine, not for use.

    python recipes/scripts/toy_server.py  # prints its address, and serves until Ctrl-C
"""

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


class Handler(BaseHTTPRequestHandler):
    model: Any
    tokenizer: Any

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        prompt = body["prompt"]
        ids = prompt if isinstance(prompt, list) else self.tokenizer(prompt)["input_ids"]
        choices = [{"index": i, **self.answer(ids, body)} for i in range(body.get("n", 1))]
        data = json.dumps({"choices": choices, "usage": {"prompt_tokens": len(ids)}}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    @torch.no_grad()
    def answer(self, ids: list[int], body: dict[str, Any]) -> dict[str, Any]:
        tokens: list[int] = []
        likeliest = []
        while len(tokens) < body["max_tokens"] and tokens[-1:] != [self.tokenizer.eos_token_id]:
            logps = self.model(torch.tensor([[*ids, *tokens]])).logits[0, -1].log_softmax(-1)
            tokens.append(int(torch.multinomial((logps / max(body.get("temperature", 1.0), 1e-3)).softmax(-1), 1)))
            found = logps.topk(body.get("logprobs") or 0)
            likeliest.append(
                {f"token_id:{i}": p for p, i in zip(found.values.tolist(), found.indices.tolist(), strict=True)}
            )
        ended = tokens[-1:] == [self.tokenizer.eos_token_id]
        return {
            "text": self.tokenizer.decode(tokens, skip_special_tokens=True),
            "logprobs": {"tokens": [f"token_id:{i}" for i in tokens], "top_logprobs": likeliest},
            "finish_reason": "stop" if ended else "length",
        }

    def log_message(self, *_: Any) -> None:
        pass


def start(model: str) -> str:
    """Serve a model in a thread of this process, and return the address."""
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype="float32").eval()
    handler = type("Handler", (Handler,), {"model": loaded, "tokenizer": AutoTokenizer.from_pretrained(model)})
    server = HTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"http://127.0.0.1:{server.server_port}/v1"


if __name__ == "__main__":
    print(start(str(Path(__file__).resolve().parent.parent / "quickstart/models/imdb-2m")))
    threading.Event().wait()
