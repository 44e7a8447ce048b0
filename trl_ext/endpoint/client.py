# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0
"""
A client of servers that speak OpenAI's protocol: requests, their faults and what they cost.

Faults are in `endpoint_faults.py`; what is asked and how an answer is read, in `endpoint_answers.py`. The standard
library is enough.
"""

import http.client
import json
import os
import random
import ssl
import threading
import time
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlsplit

from .errors import BadAnswer, EndpointClosed, EndpointError, EndpointUnreachable, excerpt, of_status


@dataclass(frozen=True)
class Cost:
    """
    What a run has cost.

    Attributes:
        requests (`int`): Requests that were sent, those that failed included.
        retries (`int`): How many of them repeated one that had failed.
        prompt_tokens (`int`), completion_tokens (`int`): As the server counted them.
        uncounted (`int`): Answers whose tokens the server did not count.
    """

    requests: int = 0
    retries: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    uncounted: int = 0


class Endpoint:
    """
    One model of one server. Safe to use from several threads.

    A request that fails for a while (429, 5xx, a cut connection, no answer in time, an answer that is no JSON) is sent
    again: after `backoff` seconds, twice that, four times that, each times a random number between 0.5 and 1.5, but
    never before the time that the server's `Retry-After` names. A 429 holds up the requests of all threads.

    Args:
        base_url (`str`):
            Address up to and with the version, `http://localhost:8000/v1`. It must not hold a password.
        model (`str`):
            Name of the model on the server.
        api_key_variable (`str`, *optional*, defaults to `""`):
            Environment variable that holds the key, `OPENAI_API_KEY` for instance. Without a name none is sent. The
            key appears in no message, representation or file.
        timeout (`float`, *optional*, defaults to `60.0`):
            Seconds to wait for the connection, and for each part of the answer.
        max_retries (`int`, *optional*, defaults to `6`):
            How often a request is repeated. `0`: never.
        backoff (`float`, *optional*, defaults to `0.5`):
            Seconds before the first repetition.
        max_wait (`float`, *optional*, defaults to `60.0`):
            Longest wait before a repetition, in seconds. A server that asks for a longer one ends the run instead.
        max_concurrency (`int`, *optional*, defaults to `8`):
            Requests under way at once.
        extra_body (`dict[str, Any]`, *optional*):
            Fields to add to every request, for what only this server knows.

    Raises:
        `ValueError`: A setting is out of its range, the address is none, or the environment has no key.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        api_key_variable: str = "",
        timeout: float = 60.0,
        max_retries: int = 6,
        backoff: float = 0.5,
        max_wait: float = 60.0,
        max_concurrency: int = 8,
        extra_body: dict[str, Any] | None = None,
    ) -> None:
        for name, value in (("timeout", timeout), ("max_concurrency", max_concurrency)):
            if not value > 0:
                raise ValueError(f"{name} must be above 0, got {value}.")
        for name, value in (("max_retries", max_retries), ("backoff", backoff), ("max_wait", max_wait)):
            if not value >= 0:
                raise ValueError(f"{name} must not be negative, got {value}.")
        self.base_url, self.model = base_url.rstrip("/"), model
        self._address = _address(self.base_url)
        self._key = _key(api_key_variable)
        self.timeout, self.max_retries, self.backoff, self.max_wait = timeout, max_retries, backoff, max_wait
        self.max_concurrency = max_concurrency
        self.extra_body = dict(extra_body or {})
        self._slots = threading.BoundedSemaphore(max_concurrency)
        self._lock = threading.Lock()
        self._idle: list[http.client.HTTPConnection] = []
        self._cost = Cost()
        self._not_before = 0.0
        self._closed = threading.Event()

    def __repr__(self) -> str:
        return f"Endpoint({self.base_url!r}, {self.model!r})"

    @property
    def cost(self) -> Cost:
        """What all requests so far have cost."""
        return self._cost

    def close(self) -> None:
        """Close the connections, and end the waiting of every thread with an [`EndpointClosed`]."""
        self._closed.set()
        with self._lock:
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    def post(self, path: str, body: dict[str, Any], *, max_retries: int | None = None) -> dict[str, Any]:
        """
        Send `body` and return the answer.

        Args:
            path (`str`): What follows the base address, `completions` or `chat/completions`.
            body (`dict[str, Any]`): The request. The model's name and `extra_body` are added.
            max_retries (`int`, *optional*): Instead of the client's own.

        Raises:
            [`EndpointError`]: It failed for good. The message says what the server said.
        """
        data = json.dumps({"model": self.model, **body, **self.extra_body}).encode()
        tries = 1 + (self.max_retries if max_retries is None else max_retries)
        for attempt in range(tries):
            try:
                self._wait(self._not_before - time.monotonic())
                with self._slots:
                    return self._count(self._send(path, data, again=attempt > 0))
            except EndpointError as error:
                if not error.transient or attempt == tries - 1:
                    raise self._final(error, attempt + 1) from error.__cause__
                self._wait(self._delay(error, attempt))
        raise AssertionError("unreachable")

    def _wait(self, seconds: float) -> None:
        if self._closed.wait(seconds) if seconds > 0 else self._closed.is_set():
            raise EndpointClosed(f"The client of {self.base_url} was closed.")

    def _delay(self, error: EndpointError, attempt: int) -> float:
        """Seconds to wait after a failure, as announced to the other threads where it concerns them."""
        if error.retry_after > self.max_wait:
            raise self._final(error, attempt + 1, f" It asks to wait {error.retry_after:.0f} s, max_wait is less.")
        own = min(self.backoff * 2**attempt, self.max_wait) * random.uniform(0.5, 1.5)
        delay = max(own, error.retry_after)
        if error.status == 429 or error.retry_after:
            with self._lock:
                self._not_before = max(self._not_before, time.monotonic() + delay)
        return delay

    def _final(self, error: EndpointError, tries: int, more: str = "") -> EndpointError:
        message = f"{error}{more}" + (f" (tried {tries} times)" if tries > 1 else "")
        return type(error)(message, status=error.status, transient=error.transient, retry_after=error.retry_after)

    def _count(self, answer: dict[str, Any]) -> dict[str, Any]:
        usage = answer.get("usage")
        counts = [usage.get(f"{kind}_tokens") for kind in ("prompt", "completion")] if isinstance(usage, dict) else []
        known = [count if isinstance(count, int) else 0 for count in counts] or [0, 0]
        with self._lock:
            self._cost = replace(
                self._cost,
                prompt_tokens=self._cost.prompt_tokens + known[0],
                completion_tokens=self._cost.completion_tokens + known[1],
                uncounted=self._cost.uncounted + (not counts or counts[0] is None),
            )
        return answer

    def _send(self, path: str, data: bytes, again: bool) -> dict[str, Any]:
        """One request, without repetition; but a kept connection that the server has closed meanwhile is replaced."""
        with self._lock:
            self._cost = replace(self._cost, requests=self._cost.requests + 1, retries=self._cost.retries + again)
            kept = self._idle.pop() if self._idle else None
        where = f"{self.base_url}/{path}"
        try:
            status, headers, raw = self._exchange(kept, path, data)
        except TimeoutError as error:
            raise EndpointUnreachable(f"{where}: no answer within {self.timeout:g} s.", transient=True) from error
        except ssl.SSLError as error:
            raise EndpointUnreachable(f"{where}: no secure connection ({error}).") from error
        except (OSError, http.client.HTTPException) as error:
            reason = self._masked(f"{type(error).__name__}: {error}")
            raise EndpointUnreachable(f"{where}: the connection failed ({reason}).", transient=True) from error
        if status != 200:
            raise of_status(where, status, headers, self._said(raw))
        try:
            answer = json.loads(raw)
        except ValueError as error:
            message = f"{where}: the answer is no JSON: {self._said(raw)}"
            raise BadAnswer(message, status=status, transient=True) from error
        if not isinstance(answer, dict):
            raise BadAnswer(f"{where}: the answer is no JSON object: {self._said(raw)}", status=status)
        return answer

    def _exchange(
        self, kept: http.client.HTTPConnection | None, path: str, data: bytes
    ) -> tuple[int, http.client.HTTPMessage, bytes]:
        secure, host, port, prefix = self._address
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        kind = http.client.HTTPSConnection if secure else http.client.HTTPConnection
        connection = kept or kind(host, port, timeout=self.timeout)
        try:
            connection.request("POST", f"{prefix}/{path}", body=data, headers=headers)
            response = connection.getresponse()
        except (ConnectionError, http.client.BadStatusLine):
            connection.close()
            if kept is None:
                raise
            return self._exchange(None, path, data)
        except BaseException:
            connection.close()
            raise
        try:
            raw = response.read()
        except BaseException:
            connection.close()
            raise
        with self._lock:
            if response.will_close or self._closed.is_set():
                connection.close()
            else:
                self._idle.append(connection)
        return response.status, response.headers, raw

    def _said(self, raw: bytes) -> str:
        return excerpt(self._masked(raw.decode("utf-8", errors="replace")))

    def _masked(self, text: str) -> str:
        return text.replace(self._key, "[key]") if self._key else text


def _address(base_url: str) -> tuple[bool, str, int | None, str]:
    parts = urlsplit(base_url)
    if parts.username or parts.password:
        raise ValueError(
            "base_url holds a password: leave it out, and name the environment variable that holds the key."
        )
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise ValueError(f"base_url must be an address such as http://localhost:8000/v1, got {base_url!r}.")
    return parts.scheme == "https", parts.hostname, parts.port, parts.path


def _key(variable: str) -> str:
    if not variable:
        return ""
    key = os.environ.get(variable, "").strip()
    if not key:
        raise ValueError(f"api_key_variable names {variable!r}, which is not set in the environment.")
    if not key.isascii() or not key.isprintable():
        raise ValueError(f"The environment variable {variable!r} holds no key: it has characters that no key has.")
    return key
