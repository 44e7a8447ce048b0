# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0
"""A server in a thread, scripted by a test: failures on demand, or OpenAI's protocol over a tiny model."""

import json
import socket
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from typing import Any


CUT, HALF, SILENT = "cut the connection", "cut it in the middle of the answer", "do not answer"


def free_port() -> int:
    """A free port of this machine."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


class ScriptedServer:
    """
    `script` has the replies to the next requests, in order: (status, headers, body), CUT, HALF or SILENT. After it,
    `answer(path, body)` returns the body for status 200, or a triple.

    It can also be the proxy of the environment: requests then have their whole address for a path, and requests for a
    tunnel (CONNECT) are listed in `tunnels` and refused.
    """

    def __init__(self, answer: Any = None, port: int = 0) -> None:
        self.answer = answer or (lambda path, body: completion("ok"))
        self.script: list[Any] = []
        self.requests: list[tuple[str, dict[str, Any], dict[str, str]]] = []
        self.times: list[float] = []
        self.tunnels: list[str] = []
        self.sockets: list[socket.socket] = []
        self.connections = self.most_at_once = self.at_once = 0
        self.lock = threading.Lock()
        self.closing = threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def setup(self) -> None:
                super().setup()
                with outer.lock:
                    outer.connections += 1
                    outer.sockets.append(self.connection)

            def do_POST(self) -> None:
                outer.handle(self)

            def do_GET(self) -> None:
                outer.handle(self)

            def do_CONNECT(self) -> None:
                outer.tunnels.append(self.path)
                self.send_error(403, "No tunnels here")

            def log_message(self, *_: Any) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def server_bind(self) -> None:  # the parent's looks up the host's name, which may take seconds
                TCPServer.server_bind(self)
                self.server_name, self.server_port = self.server_address[:2]

            def handle_error(self, *args: Any) -> None:
                if not isinstance(sys.exception(), ConnectionError):  # of clients that have closed
                    super().handle_error(*args)

        self.server = Server(("127.0.0.1", port), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        self.closing.set()
        self.server.shutdown()
        self.server.server_close()

    def hang_up(self) -> None:
        """Close all connections, without notice."""
        for each in self.sockets:
            each.shutdown(socket.SHUT_RDWR)

    def handle(self, handler: BaseHTTPRequestHandler) -> None:
        body = json.loads(handler.rfile.read(int(handler.headers.get("Content-Length", 0))) or "{}")
        with self.lock:
            self.requests.append((handler.path, body, dict(handler.headers)))
            self.times.append(time.monotonic())
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
            step = self.script.pop(0) if self.script else None
        try:
            self.reply(handler, body, step)
        finally:
            with self.lock:
                self.at_once -= 1

    def reply(self, handler: BaseHTTPRequestHandler, body: dict[str, Any], step: Any) -> None:
        if step == SILENT:
            self.closing.wait(10)
        if step in (CUT, SILENT):
            handler.close_connection = True
            return
        made = self.answer(handler.path, body) if step in (None, HALF) else step
        status, headers, raw = made if isinstance(made, tuple) else (200, {}, made)
        data = raw if isinstance(raw, bytes) else json.dumps(raw).encode()
        handler.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(data)), **headers}.items():
            handler.send_header(name, value)
        handler.end_headers()
        if step == HALF:
            handler.close_connection = True
            data = data[: len(data) // 2]
        handler.wfile.write(data)


def completion(*texts: str, logprobs: Any = None, ended: bool = False, prompt_tokens: int = 3) -> dict[str, Any]:
    """The body of an answer of the completions endpoint, with the same `logprobs` for every text."""
    return {
        "choices": [
            {"index": i, "text": text, "logprobs": logprobs, "finish_reason": "stop" if ended else "length"}
            for i, text in enumerate(texts)
        ],
        "usage": {"prompt_tokens": prompt_tokens, "completion_tokens": len(texts)},
    }


class ModelServer:
    """
    The protocol over a tiny model, as `ScriptedServer`'s `answer`.

    `style` is the server that it imitates. "ids" (vLLM): accepts ids and several prompts, and returns ids if asked to,
    that of the end included. "text" (llama.cpp): text only; candidates in a table from text to log-probability, with
    one entry "" for the end and all incomplete characters; an empty answer where it samples the end; `n` is ignored.
    """

    def __init__(self, model: Any, tokenizer: Any, style: str, name: str = "m") -> None:
        self.model, self.tokenizer, self.style, self.model_name = model, tokenizer, style, name
        import torch

        self.never_ends = False
        self.generator = torch.Generator().manual_seed(0)
        self.lock = threading.Lock()

    def __call__(self, path: str, body: dict[str, Any]) -> Any:
        with self.lock:
            if path.endswith("/models"):
                return {"object": "list", "data": [{"id": self.model_name, "object": "model"}]}
            if path.endswith("/chat/completions"):
                return self.chat(body)
            prompt = body["prompt"]
            if isinstance(prompt, list) and self.style == "text":
                return 500, {}, {"error": {"message": "1 validation error for list[str]"}}
            prompts = prompt if isinstance(prompt, list) and isinstance(prompt[0], list) else [prompt]
            rows = [p if isinstance(p, list) else self.tokenizer(p)["input_ids"] for p in prompts]
            return self.choices(rows, body, body.get("logprobs") or 0)

    def chat(self, body: dict[str, Any]) -> Any:
        go_on = body.get("continue_final_message", False)
        ids = self.tokenizer.apply_chat_template(
            body["messages"], add_generation_prompt=not go_on, continue_final_message=go_on, return_dict=True
        )["input_ids"]
        made = self.choices([ids], body, body.get("top_logprobs") or 0)
        for choice in made["choices"]:
            choice["message"] = {"role": "assistant", "content": choice.pop("text")}
            if choice["logprobs"]:
                choice["logprobs"] = {
                    "content": [
                        {"token": name, "top_logprobs": [{"token": t, "logprob": p} for t, p in token.items()]}
                        for name, token in zip(*choice["logprobs"].values(), strict=True)
                    ]
                }
        return made

    def choices(self, rows: list[list[int]], body: dict[str, Any], k: int) -> dict[str, Any]:
        n = body.get("n", 1) if self.style == "ids" else 1
        made = [self.one(list(ids), body, k) for ids in rows for _ in range(n)]
        choices = [{"index": i, **choice} for i, choice in enumerate(made)]
        return {"choices": choices, "usage": {"prompt_tokens": sum(map(len, rows)), "completion_tokens": len(made)}}

    def one(self, ids: list[int], body: dict[str, Any], k: int) -> dict[str, Any]:
        import torch

        tokens, tops, ended = [], [], False
        while len(tokens) < body["max_tokens"] and not ended:
            with torch.no_grad():
                logps_V = self.model(torch.tensor([ids + tokens])).logits[0, -1].log_softmax(-1)
            weights_V = (logps_V / (body.get("temperature", 1.0) or 1e-3)).softmax(-1)
            if self.never_ends:
                weights_V[self.tokenizer.eos_token_id] = 0
            token = int(torch.multinomial(weights_V, 1, generator=self.generator))
            ended = token == self.tokenizer.eos_token_id
            if ended and self.style == "text":
                break
            tokens.append(token)
            names = [*logps_V.topk(k).indices.tolist(), token]
            tops.append({self.name(i, body): float(logps_V[i]) for i in names})
        return {
            **({"token_ids": tokens} if body.get("return_token_ids") else {}),
            "text": self.tokenizer.decode(tokens, skip_special_tokens=True),
            "logprobs": {"tokens": [self.name(i, body) for i in tokens], "top_logprobs": tops} if k else None,
            "finish_reason": "stop" if ended else "length",
        }

    def name(self, token: int, body: dict[str, Any]) -> str:
        if self.style == "ids" and body.get("return_tokens_as_token_ids"):
            return f"token_id:{token}"
        return self.tokenizer.decode([token], skip_special_tokens=self.style == "text")
