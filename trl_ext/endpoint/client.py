# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0
"""
HTTP client for servers of models that answer with JSON objects, as those with OpenAI's API do: connections, retries,
errors and a count of requests and tokens.

What requests contain and how answers are read is in `protocol.py`, the types of errors are in `errors.py`. Retries are
a loop of our own: a 429 delays all threads, a `Retry-After` beyond the limit ends the run, and `close` interrupts the
waits, none of which a library for retries does.
"""

import json
import math
import os
import random
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import httpx2

from .errors import (
    BadAnswer,
    EndpointClosed,
    EndpointError,
    EndpointFailed,
    EndpointUnreachable,
    error_of_status,
    excerpt,
)


# Fields of a request that decide how its answer is read.
_OWN_FIELDS = frozenset("prompt messages stream n best_of echo max_tokens logprobs top_logprobs".split())


@dataclass(frozen=True)
class Cost:
    """
    Number of requests and tokens of a run.

    Attributes:
        requests (`int`): Requests sent, failed ones included.
        retries (`int`): Those of them that repeated a failed one.
        prompt_tokens (`int`), completion_tokens (`int`): Tokens, as counted by the server.
        uncounted (`int`): Answers without a token count.
    """

    requests: int = 0
    retries: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    uncounted: int = 0


class Endpoint:
    """
    One model of one server. Safe to use from several threads.

    Requests with a temporary failure (429, 5xx, a lost connection, a timeout, a malformed answer) are sent again:
    after `backoff` seconds, then twice that, four times that, each multiplied by a random number between 0.5 and 1.5,
    and never before the time in the server's `Retry-After`. A 429 delays the requests of all threads.

    The environment's proxies are used: `HTTP_PROXY`, `HTTPS_PROXY` and `ALL_PROXY`, except for the hosts in
    `NO_PROXY`. Where they are set, a server on your own machine belongs in `NO_PROXY`.

    Args:
        base_url (`str`):
            Address up to and including the version, such as `http://localhost:8000/v1`. It must not contain a
            password.
        model (`str`):
            Name of the model on the server. Empty: requests name none.
        api_key_variable (`str`, *optional*, defaults to `""`):
            Environment variable with the API key, such as `OPENAI_API_KEY`. Empty: no key is sent. The key appears in
            no message, representation or file.
        timeout (`float`, *optional*, defaults to `60.0`):
            Seconds to wait for the connection, and for each part of the answer. `inf` waits forever.
        max_retries (`int`, *optional*, defaults to `6`):
            How often a failed request is repeated.
        backoff (`float`, *optional*, defaults to `0.5`):
            Seconds before the first retry.
        max_wait (`float`, *optional*, defaults to `60.0`):
            Longest wait before a retry, in seconds. If the server asks for a longer one, the request fails.
        max_concurrency (`int`, *optional*, defaults to `8`):
            Requests in flight at once. Further ones wait for their turn.
        extra_body (`dict[str, Any]`, *optional*):
            Fields to add to every request, for options that only this server has.
        use_proxies (`bool`, *optional*, defaults to `True`):
            Whether the environment's proxies are used.

    Raises:
        `ValueError`: A setting is out of range, the address is invalid, `extra_body` has a field that the client sets
            itself, or the environment has no such key.
        `ImportError`: The environment's proxy is a SOCKS proxy, and the package for it is not installed.
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
        use_proxies: bool = True,
    ) -> None:
        for name, value in (("timeout", timeout), ("max_concurrency", max_concurrency)):
            if not value > 0:
                raise ValueError(f"{name} must be above 0, got {value}.")
        for name, value in (("max_retries", max_retries), ("backoff", backoff), ("max_wait", max_wait)):
            if not value >= 0:
                raise ValueError(f"{name} must not be negative, got {value}.")
        if own := sorted(_OWN_FIELDS & set(extra_body or ())):
            raise ValueError(f"extra_body has {', '.join(own)}, which the client sets itself: leave it out.")
        _check_address(base_url)
        self.base_url, self.model = base_url.rstrip("/"), model
        self._key = _key(api_key_variable)
        self.timeout, self.max_retries, self.backoff, self.max_wait = timeout, max_retries, backoff, max_wait
        self.max_concurrency = max_concurrency
        self.extra_body = dict(extra_body or {})
        self._client = _http_client(self._key, timeout, max_concurrency, use_proxies)
        self._lock = threading.Lock()  # of the fields below
        self._cost = Cost()
        self._not_before = 0.0
        self._in_flight = 0
        self._closed = threading.Event()

    def __repr__(self) -> str:
        return f"Endpoint({self.base_url!r}, {self.model!r})"

    @property
    def cost(self) -> Cost:
        """Requests and tokens so far."""
        return self._cost

    def close(self) -> None:
        """Refuse further requests: threads that wait to send one get [`EndpointClosed`], answers under way arrive."""
        self._closed.set()
        self._disconnect_if_unused()

    def get(self, path: str) -> dict[str, Any]:
        """
        Send a GET request and return the answer. Failures are not retried.

        Args:
            path (`str`): The part after the base address, such as `models`.

        Raises:
            [`EndpointError`]: It failed; the message contains the server's.
        """
        self._wait(0.0)
        return self._send("GET", path, None, retry=False)

    def post(
        self,
        path: str,
        body: dict[str, Any],
        *,
        read: Callable[[dict[str, Any]], Any] | None = None,
        max_retries: int | None = None,
    ) -> Any:
        """
        Send a request and return the answer.

        Args:
            path (`str`): The part after the base address, `completions` or `chat/completions`.
            body (`dict[str, Any]`): The request. The model's name and `extra_body` are added.
            read (`Callable`, *optional*): Parses the answer; what it returns is returned. If it raises an
                [`EndpointError`] that is `transient`, the request is sent again.
            max_retries (`int`, *optional*): Replaces the client's own.

        Raises:
            [`EndpointError`]: It failed for good; the message contains the server's.
        """
        named = {"model": self.model} if self.model else {}
        data = json.dumps({**named, **body, **self.extra_body}).encode()
        tries = 1 + (self.max_retries if max_retries is None else max_retries)
        for attempt in range(tries):
            try:
                self._wait(self._not_before - time.monotonic())
                answer = self._count(self._send("POST", path, data, retry=attempt > 0))
                return answer if read is None else read(answer)
            except EndpointError as error:
                if not error.transient or attempt == tries - 1:
                    raise self._final(error, attempt + 1) from error.__cause__
                self._wait(self._delay(error, attempt))
        raise AssertionError("unreachable")

    def stream(self, path: str, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """
        Send a request, and return the chunks of its answer as the server generates it (server-sent events).

        A failure is not retried. To stop the server, close the iterator: the connection is then closed.

        Args:
            path (`str`): As for [`post`].
            body (`dict[str, Any]`): The request. `stream`, the model's name and `extra_body` are added.

        Raises:
            [`EndpointError`]: It failed; the message contains the server's.
        """
        self._wait(0.0)
        where = f"{self.base_url}/{path}"
        named = {"model": self.model} if self.model else {}
        data = json.dumps({**named, **body, **self.extra_body, "stream": True}).encode()
        with self._connection(where, retry=False), self._client.stream("POST", where, content=data) as response:
            if response.status_code != 200:
                response.read()
                raise error_of_status(where, response.status_code, response.headers, self._excerpt(response))
            for line in response.iter_lines():
                text = line.removeprefix("data:").strip() if line.startswith("data:") else ""
                if text == "[DONE]":
                    return
                if text:
                    yield self._chunk(where, text)

    def _chunk(self, where: str, text: str) -> dict[str, Any]:
        try:
            chunk = json.loads(text)
        except ValueError as error:
            raise BadAnswer(f"{where}: a chunk is not JSON: {excerpt(self._masked(text))}", status=200) from error
        if not isinstance(chunk, dict):
            raise BadAnswer(f"{where}: a chunk is not a JSON object: {excerpt(self._masked(text))}", status=200)
        if chunk.get("error"):
            found = chunk["error"]
            message = found.get("message", found) if isinstance(found, dict) else found
            raise EndpointFailed(f"{where}: {excerpt(self._masked(str(message)))}", status=200)
        return chunk

    def _wait(self, seconds: float) -> None:
        if self._closed.wait(seconds) if seconds > 0 else self._closed.is_set():
            raise self._closed_error()

    def _closed_error(self) -> EndpointClosed:
        return EndpointClosed(f"The client of {self.base_url} was closed.")

    def _delay(self, error: EndpointError, attempt: int) -> float:
        """Seconds until the next try. A delay that the server asks for applies to the other threads too."""
        if error.retry_after > self.max_wait:
            raise self._final(error, attempt + 1, f" It asks to wait {error.retry_after:.0f} s, longer than max_wait.")
        own = min(self.backoff * 2**attempt, self.max_wait) * random.uniform(0.5, 1.5)
        delay = max(own, error.retry_after)
        if error.status == 429 or error.retry_after:
            with self._lock:
                self._not_before = max(self._not_before, time.monotonic() + delay)
        return delay

    def _final(self, error: EndpointError, tries: int, more: str = "") -> EndpointError:
        message = self._masked(f"{error}{more}" + (f" (tried {tries} times)" if tries > 1 else ""))
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

    def _send(self, method: str, path: str, data: bytes | None, *, retry: bool) -> dict[str, Any]:
        """One try of a request."""
        where = f"{self.base_url}/{path}"
        response = self._exchange(method, where, data, retry)
        if response.status_code != 200:
            raise error_of_status(where, response.status_code, response.headers, self._excerpt(response))
        try:
            answer = json.loads(response.content)
        except ValueError as error:
            message = f"{where}: the answer is not JSON: {self._excerpt(response)}"
            raise BadAnswer(message, status=200, transient=True) from error
        if not isinstance(answer, dict):
            message = f"{where}: the answer is not a JSON object: {self._excerpt(response)}"
            raise BadAnswer(message, status=200, transient=True)
        return answer

    def _exchange(self, method: str, where: str, data: bytes | None, retry: bool) -> httpx2.Response:
        with self._connection(where, retry):
            return self._client.request(method, where, content=data)

    @contextmanager
    def _connection(self, where: str, retry: bool) -> Iterator[None]:
        """Count a request, and give errors of the connection our own types."""
        with self._lock:
            if self._closed.is_set():
                raise self._closed_error()
            self._in_flight += 1
            self._cost = replace(self._cost, requests=self._cost.requests + 1, retries=self._cost.retries + retry)
        try:
            yield
        except httpx2.TimeoutException as error:
            raise EndpointUnreachable(f"{where}: no answer within {self.timeout:g} s.", transient=True) from error
        except httpx2.RequestError as error:
            reason = self._masked(f"{type(error).__name__}: {error}")
            if _is_tls_error(error):
                raise EndpointUnreachable(f"{where}: no secure connection ({reason}).") from error
            raise EndpointUnreachable(f"{where}: the connection failed ({reason}).", transient=True) from error
        finally:
            with self._lock:
                self._in_flight -= 1
            self._disconnect_if_unused()

    def _disconnect_if_unused(self) -> None:
        with self._lock:
            if self._closed.is_set() and not self._in_flight:
                self._client.close()

    def _excerpt(self, response: httpx2.Response) -> str:
        return excerpt(self._masked(response.content.decode("utf-8", errors="replace")))

    def _masked(self, text: str) -> str:
        return text.replace(self._key, "[key]") if self._key else text


def _check_address(base_url: str) -> None:
    try:
        url = httpx2.URL(base_url)
    except httpx2.InvalidURL as error:
        raise ValueError(f"base_url is not a valid address ({error}).") from error
    if url.userinfo:
        raise ValueError(
            "base_url contains a password: leave it out, and name the environment variable that holds the key."
        )
    if url.scheme not in ("http", "https") or not url.host or url.query or url.fragment:
        raise ValueError(f"base_url must be an address such as http://localhost:8000/v1, got {base_url!r}.")


def _key(variable: str) -> str:
    if not variable:
        return ""
    key = os.environ.get(variable, "").strip()
    if not key:
        raise ValueError(f"api_key_variable names {variable!r}, which is not set in the environment.")
    if not key.isascii() or not key.isprintable():
        raise ValueError(f"The environment variable {variable!r} does not hold a key: a key is printable ASCII.")
    return key


def _http_client(key: str, timeout: float, max_concurrency: int, use_proxies: bool) -> httpx2.Client:
    headers = {"Content-Type": "application/json", "Accept": "application/json"}
    if key:
        headers["Authorization"] = f"Bearer {key}"
    try:
        return httpx2.Client(
            headers=headers,
            trust_env=use_proxies,
            timeout=httpx2.Timeout(timeout if timeout < math.inf else None, pool=None),
            # The connections are the limit on concurrency: requests above it wait for one.
            limits=httpx2.Limits(max_connections=max_concurrency, max_keepalive_connections=max_concurrency),
        )
    except ImportError as error:
        raise ImportError(
            "The environment (ALL_PROXY, HTTP_PROXY or HTTPS_PROXY) names a SOCKS proxy: pip install 'httpx2[socks]', "
            "or unset the variable."
        ) from error


def _is_tls_error(error: BaseException | None) -> bool:
    """Whether a failed TLS handshake, such as an untrusted certificate, caused an error."""
    while error is not None:
        if isinstance(error, ssl.SSLError):
            return True
        error = error.__cause__ or error.__context__
    return False
