# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0
"""A server over tiny models, and raw HTTP for it."""

import contextlib
import http.client
import json
from collections.abc import Iterator
from typing import Any

import torch
from conftest import HANGS, make_model

from trl_ext import ValueModel
from trl_ext.serving.app import App
from trl_ext.serving.limits import ServerLimits
from trl_ext.serving.models import ServedModels
from trl_ext.serving.server import Server, bind, run_in_thread


def make_value_model(tokenizer: Any) -> ValueModel:
    """A value model whose values differ: a new head is zero."""
    model = ValueModel.from_backbone(make_model(len(tokenizer), seed=1)).eval()
    with torch.no_grad():
        model.head.weight.copy_(0.3 * torch.randn(model.head.weight.shape, generator=torch.Generator().manual_seed(7)))
    return model


class Running:
    """A running server: its application, port and address."""

    def __init__(self, app: App, server: Server) -> None:
        self.app, self.server = app, server
        self.port = server.sock.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/v1"

    def connect(self, timeout: float = HANGS) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)

    def send(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> tuple[int, dict[str, str], Any]:
        """Status, headers and body (JSON, or text) of a response."""
        data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        connection = self.connect()
        try:
            connection.request(method, path, data, {"Content-Type": "application/json", **(headers or {})})
            response = connection.getresponse()
            raw = response.read().decode()
            found = {name.lower(): value for name, value in response.getheaders()}
            return response.status, found, json.loads(raw) if "json" in found["content-type"] else raw
        finally:
            connection.close()

    def post(self, body: Any, *, chat: bool = False, **headers: str) -> tuple[int, Any]:
        status, _, answer = self.send("POST", "/v1/chat/completions" if chat else "/v1/completions", body, headers)
        return status, answer

    def events(self, body: Any, *, chat: bool = False) -> list[Any]:
        """The events of a stream; the last one is the text [DONE]."""
        status, headers, raw = self.send("POST", "/v1/chat/completions" if chat else "/v1/completions", body)
        assert status == 200 and headers["content-type"].startswith("text/event-stream"), raw
        lines = [line.removeprefix("data: ") for line in raw.split("\n\n") if line]
        return [line if line == "[DONE]" else json.loads(line) for line in lines]


@contextlib.contextmanager
def running(models: ServedModels, *, limits: dict[str, Any] | None = None, **settings: Any) -> Iterator[Running]:
    app = App(models, limits=ServerLimits(**(limits or {})), **settings)
    server = Server(app, bind("127.0.0.1", 0))
    thread = run_in_thread(server)
    try:
        yield Running(app, server)
    finally:
        server.stop()
        server.stop()
        thread.join(20)
        assert not thread.is_alive()
