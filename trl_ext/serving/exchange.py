# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Requests and responses of ASGI: reading a body within limits, JSON, server-sent events, a client that goes away."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from .limits import RequestError, ServerLimits


Receive = Callable[[], Awaitable[Mapping[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]


# How much of the body of a refused request is read, and for how long, so that the client gets the response.
MAX_DISCARDED_BYTES = 64 * 2**20
MAX_DISCARD_SECONDS = 2.0


class ClientGone(Exception):
    """The client has closed the connection."""


class Exchange:
    """
    One request and its response.

    Args:
        scope (`Mapping`), receive (`Callable`), send (`Callable`): As ASGI passes them.

    Attributes:
        method (`str`), path (`str`): Of the request.
        headers (`dict[str, str]`): Its headers, with names in lower case.
        status (`int`): Status of the response; 0 before it is sent.
    """

    def __init__(self, scope: Mapping[str, Any], receive: Receive, send: Send) -> None:
        self.method, self.path = str(scope["method"]), str(scope["path"])
        self.headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        self.status = 0
        self._receive, self._send = receive, send
        self._body_read = False

    async def read_json(self, limits: ServerLimits) -> Any:
        """
        The body, as JSON.

        Raises:
            [`~trl_ext.serving.limits.RequestError`]: It is too long, too slow, or no JSON.
            [`ClientGone`]: The client closed the connection.
        """
        kind = self.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":  # what a web page may send to another server without asking it is not JSON
            raise RequestError(415, "The body must be JSON: send the header Content-Type: application/json.")
        try:
            async with asyncio.timeout(limits.body_timeout):
                body = await self._body(limits.max_body_bytes)
        except TimeoutError:
            raise RequestError(408, f"The body did not arrive within {limits.body_timeout:g} s.") from None
        try:
            return json.loads(body, parse_constant=_refuse_constant)
        except (ValueError, RecursionError) as error:
            raise RequestError(400, f"The body is not JSON: {str(error)[:200]}.") from error

    async def _body(self, most: int) -> bytes:
        declared = self.headers.get("content-length", "0")
        size = int(declared) if declared.isdecimal() else 0
        parts: list[bytes] = []
        read = 0
        while max(size, read) <= most and not self._body_read:
            parts.append(await self._body_part())
            read += len(parts[-1])
        if max(size, read) > most:
            raise RequestError(413, f"The body is longer than {most} bytes.")
        return b"".join(parts)

    async def _body_part(self) -> bytes:
        message = await self._receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        self._body_read = not message.get("more_body", False)
        return bytes(message.get("body", b""))

    async def _discard_body(self) -> None:
        """
        Read what is left of the body, within limits.

        A server that closes a connection while the client still sends resets it, and the client loses the response.
        """
        if "expect" in self.headers:  # the client waits for a permission before it sends a body
            return
        left = MAX_DISCARDED_BYTES
        try:
            async with asyncio.timeout(MAX_DISCARD_SECONDS):
                while not self._body_read and left > 0:
                    left -= len(await self._body_part())
        except (TimeoutError, ClientGone):
            pass

    async def gone(self) -> None:
        """Wait until the client closes the connection. For a request whose body was read."""
        while (await self._receive())["type"] != "http.disconnect":
            pass

    async def respond(
        self, status: int, body: Any, *, headers: Mapping[str, str] | None = None, kind: str = "application/json"
    ) -> None:
        """Send a response whole: text, or an object as JSON."""
        data = body.encode() if isinstance(body, str) else json.dumps(body, allow_nan=False).encode()
        await self._start(status, {"content-type": kind, "content-length": str(len(data)), **(headers or {})})
        await self._send({"type": "http.response.body", "body": b"" if self.method == "HEAD" else data})

    async def respond_error(self, error: RequestError) -> None:
        """Send an error. What is left of the body is read first; after errors 408 and 413 the connection is closed."""
        if error.status != 408:  # that body does not arrive
            await self._discard_body()
        headers = {"retry-after": str(error.retry_after)} if error.retry_after else {}
        if error.allow:
            headers["allow"] = error.allow
        if error.status == 401:
            headers["www-authenticate"] = "Bearer"
        if error.status in (408, 413):
            headers["connection"] = "close"
        await self.respond(error.status, error.body(), headers=headers)

    async def start_events(self) -> None:
        """Begin a stream of server-sent events."""
        await self._start(200, {"content-type": "text/event-stream; charset=utf-8", "cache-control": "no-cache"})

    async def send_event(self, data: Any) -> None:
        """Send an event: an object as JSON, or a text."""
        text = data if isinstance(data, str) else json.dumps(data, allow_nan=False)
        body = f"data: {text}\n\n".encode()
        await self._send({"type": "http.response.body", "body": body, "more_body": True})

    async def end_events(self) -> None:
        """End the stream."""
        await self._send({"type": "http.response.body", "body": b""})

    async def _start(self, status: int, headers: Mapping[str, str]) -> None:
        self.status = status
        pairs = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
        await self._send({"type": "http.response.start", "status": status, "headers": pairs})


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"JSON has no {name}")
