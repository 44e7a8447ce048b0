# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
The routes of the server, as an application of ASGI.

It is written against ASGI itself, without a framework: five routes need no router, each field of a body is refused
with a reason of its own, which validators of frameworks do not give, and a stream, its time limit and a client that
goes away are handled in one place. What is hard in HTTP (parsing, keep-alive, chunked bodies, flow control, noticing
a closed connection) is uvicorn's; the standard library's server leaves most of it to its user. The application itself
imports nothing that is optional.
"""

import asyncio
import hmac
import logging
import random
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

from trl_ext.data.schema import DataError
from trl_ext.data.token_ids import check_token_ids
from trl_ext.generation_settings import GenerationSettings
from trl_ext.inference.policy import Policy

from .answers import Answers, TokenTexts
from .engine import Engine
from .exchange import ClientGone, Exchange, Receive, Send
from .jobs import BatchKey, Done, Event, Failed, Job, Piece
from .limits import RequestError, ServerLimits
from .metrics import Metrics
from .models import ServedModels, prompt_row
from .requests import Prompt, Request, read_request


logger = logging.getLogger(__name__)

_ROUTES = {
    "/health": "GET",
    "/metrics": "GET",
    "/v1/models": "GET",
    "/v1/models/{model}": "GET",
    "/v1/completions": "POST",
    "/v1/chat/completions": "POST",
}
_MODEL_ROUTE = "/v1/models/{model}"
_LOCAL_NAMES = ("127.0.0.1", "localhost", "[::1]")


class App:
    """
    The server, as an application of ASGI.

    Args:
        models ([`~trl_ext.serving.models.ServedModels`]): What it serves.
        defaults ([`~trl_ext.generation_settings.GenerationSettings`], *optional*): Settings that requests do not give.
        limits ([`~trl_ext.serving.limits.ServerLimits`], *optional*): Its limits.
        api_key (`str`, *optional*, defaults to `""`): The key that requests must have. Empty: none.
        local_only (`bool`, *optional*, defaults to `False`): Whether only this machine reaches the server. Without a
            key, requests then must name it by a local name: a web page whose name was made to point here is refused.
        seed (`int`, *optional*, defaults to `42`): Seed of the seeds of requests that give none.
    """

    def __init__(
        self,
        models: ServedModels,
        *,
        defaults: GenerationSettings | None = None,
        limits: ServerLimits | None = None,
        api_key: str = "",
        local_only: bool = False,
        seed: int = 42,
    ) -> None:
        self.models, self.limits = models, limits or ServerLimits()
        self.defaults = defaults or GenerationSettings(num_generations=1)
        self.metrics = Metrics()
        self.engine = Engine(models, self.limits, self.metrics)
        self.draining = False
        self.active, self.in_flight = 0, set[Job]()  # requests for completions, and those that have a job
        self._key, self._local_only = api_key.encode(), local_only
        self._encoding = threading.Lock()
        self._texts = TokenTexts(models.plain.tokenizer)
        self._rng, self._started = random.Random(seed), int(time.time())

    async def __call__(self, scope: Mapping[str, Any], receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            return
        exchange = Exchange(scope, receive, send)
        try:
            await self._route(exchange)
        except RequestError as error:
            await exchange.respond_error(error)
        except ClientGone:
            exchange.status = 499
        except Exception:
            logger.exception("A request failed.")
            if not exchange.status:
                await exchange.respond_error(RequestError(500, "The server failed; its log has the reason."))
        route = _route_of(exchange.path) or "other"
        self.metrics.add("requests_total", route=route, status=str(exchange.status))

    async def _route(self, exchange: Exchange) -> None:
        self._check_host(exchange)
        route = _route_of(exchange.path)
        method = _ROUTES.get(route)
        if exchange.path != "/health":
            self._check_key(exchange)
        if method is None:
            raise RequestError(404, f"There is no {exchange.path[:200]!r} here. There are: {', '.join(_ROUTES)}.")
        if exchange.method != method and (exchange.method, method) != ("HEAD", "GET"):
            raise RequestError(405, f"{exchange.path} takes {method}, not {exchange.method}.", allow=method)
        if exchange.path == "/health":
            fine = self.engine.alive and not self.draining
            await exchange.respond(200 if fine else 503, {"status": "ok" if fine else "not serving"})
        elif exchange.path == "/metrics":
            gauges = {"waiting_requests": self.engine.waiting, "running_completions": self.engine.running}
            await exchange.respond(200, self.metrics.render(gauges), kind="text/plain; version=0.0.4; charset=utf-8")
        elif exchange.path == "/v1/models":
            await exchange.respond(
                200, {"object": "list", "data": [self._about(name) for name in self.models.by_name]}
            )
        elif route == _MODEL_ROUTE:
            await exchange.respond(200, self._about(self.models.named(exchange.path.removeprefix("/v1/models/"))))
        else:
            await self._complete(exchange, chat=exchange.path.startswith("/v1/chat"))

    def _check_host(self, exchange: Exchange) -> None:
        if not self._local_only or self._key:
            return
        host = exchange.headers.get("host", "")
        name = host if host.endswith("]") else host.rpartition(":")[0] or host
        if name.lower() not in _LOCAL_NAMES:
            raise RequestError(
                403, f"This server is called {_LOCAL_NAMES[0]} or localhost. For another name, set an API key.",
            )  # fmt: skip

    def _check_key(self, exchange: Exchange) -> None:
        scheme, _, given = exchange.headers.get("authorization", "").partition(" ")
        if self._key and not (
            hmac.compare_digest(given.strip().encode("latin-1"), self._key) and scheme.lower() == "bearer"
        ):
            raise RequestError(401, "The API key is missing or wrong: send it as Authorization: Bearer KEY.")

    def _about(self, name: str) -> dict[str, Any]:
        policy = self.models.by_name[name]
        weights = None if policy.weights is None else policy.weights.values
        about: dict[str, Any] = {"max_model_len": policy.context or None, "beta": weights}
        about |= {"beta_about": {} if policy.weights is None else policy.weights.about}
        about |= {"guidance": policy.shows_guidance, "chat": policy.tokenizer.chat_template is not None}
        about |= {"rewards": self.models.reward_weights}
        return {"id": name, "object": "model", "created": self._started, "owned_by": "trl-ext", **about}

    # ----------------------------------------------------------------------------------------------- completions

    async def _complete(self, exchange: Exchange, chat: bool) -> None:
        if self.draining:
            raise RequestError(503, "The server shuts down.", retry_after=30)
        self.active += 1
        try:
            await self._answer(exchange, await exchange.read_json(self.limits), chat)
        finally:
            self.active -= 1

    async def _answer(self, exchange: Exchange, body: Any, chat: bool) -> None:
        start = time.monotonic()
        request = read_request(body, chat=chat, defaults=self.defaults, limits=self.limits)
        events: asyncio.Queue[Event] = asyncio.Queue()
        job, answers = await asyncio.to_thread(self._job, request, _notify(events))
        gone = asyncio.create_task(exchange.gone())
        self.in_flight.add(job)
        try:
            self.engine.submit(job)
            self.metrics.add("prompt_tokens_total", answers.prompt_tokens)
            within = self.limits.request_timeout or None
            async with asyncio.timeout(within):
                send = self._stream if request.stream else self._whole
                await send(exchange, job, answers, _Events(events, gone))
        except TimeoutError:
            error = RequestError(504, f"The request took longer than {self.limits.request_timeout:g} s.")
            if not exchange.status:
                raise error from None
            if request.stream:
                await self._break_off(exchange, error)
        except ClientGone:
            self.metrics.add("cancelled_total")
            raise
        finally:
            self.engine.cancel(job)
            self.in_flight.discard(job)
            gone.cancel()
            self.metrics.observe_seconds(time.monotonic() - start)

    async def _whole(self, exchange: Exchange, job: Job, answers: Answers, events: "_Events") -> None:
        while not isinstance(event := await events.next(), Done):
            if isinstance(event, Failed):
                raise event.error
        await exchange.respond(200, answers.whole(job))

    async def _stream(self, exchange: Exchange, job: Job, answers: Answers, events: "_Events") -> None:
        event = await events.next()  # an error before the first token has a status of its own
        if isinstance(event, Failed):
            raise event.error
        await exchange.start_events()
        for chunk in answers.first(len(job.rows)):
            await exchange.send_event(chunk)
        while not isinstance(event, Done):
            if isinstance(event, Failed):
                await self._break_off(exchange, event.error)
                return
            assert isinstance(event, Piece)
            await exchange.send_event(answers.chunk(event))
            event = await events.next()
        for chunk in answers.last():
            await exchange.send_event(chunk)
        await exchange.send_event("[DONE]")
        await exchange.end_events()

    async def _break_off(self, exchange: Exchange, error: RequestError) -> None:
        """End a stream with an error, if the client still reads it."""
        with suppress(TimeoutError):
            async with asyncio.timeout(1.0):
                await exchange.send_event(error.body())
                await exchange.end_events()

    def _job(self, request: Request, notify: Any) -> tuple[Job, Answers]:
        """
        What is to be generated for a request. Runs beside the event loop, as long prompts take time to encode.

        Raises:
            [`~trl_ext.serving.limits.RequestError`]: The request does not fit the model or the server.
        """
        name = self.models.named(request.model)
        policy = self.models.by_name[name]
        if request.best_of_n > 1:
            self.models.check_rewards()
        reward_weights = self.models.weights_of_rewards(request.reward_weights)
        beta = self.models.beta(name, request.beta)
        if request.guidance is not None:
            self.models.check_guidance(name)
        with self._encoding:
            encoded = [self._encode(policy, prompt, request) for prompt in request.prompts]
        limits = [self._limit(policy, ids, request) for ids in encoded]
        settings = replace(request.settings, max_completion_length=1)  # lengths may differ in a batch
        shown = request.guidance is not None
        key = BatchKey(name, beta, settings, shown)
        job = Job(
            key,
            policy.tokenizer,
            notify,
            stop=request.stop,
            logprobs=request.logprobs,
            guidance=request.guidance,
            stream=request.stream,
            best_of_n=request.best_of_n,
            reward_weights=reward_weights,
            reward_rows=[prompt_row(p, policy.tokenizer) for p in request.prompts for _ in range(request.n)],
            alone=request.seed is not None and not policy.observable,
        )
        k = request.n * request.best_of_n
        first = self._rng.getrandbits(62) if request.seed is None else request.seed
        seeds = [(first * 1_000_003 + i) % 2**63 for i in range(k * len(encoded))]
        job.add_rows([ids for ids in encoded for _ in range(k)], [x for x in limits for _ in range(k)], seeds)
        return job, Answers(request, name, self._texts, sum(map(len, encoded)))

    def _encode(self, policy: Policy, prompt: Prompt, request: Request) -> list[int]:
        param = "messages" if request.chat else "prompt"
        if isinstance(prompt, list) and isinstance(prompt[0], int):
            ids: Any = prompt
            if min(ids) < 0 or max(ids) >= self.models.vocabulary:
                raise RequestError(
                    400, f"`prompt` has a token id outside 0 to {self.models.vocabulary - 1}.", "prompt"
                )
            return list(ids)
        try:
            found = policy.encode(prompt, **request.template)  # type: ignore[arg-type]
            check_token_ids(found, self.models.vocabulary, policy.tokenizer)
        except DataError as error:
            if request.chat and policy.tokenizer.chat_template is None:
                message = (
                    "The model has no chat template: use /v1/completions, or start the server with "
                    "--chat_template_path."
                )
                raise RequestError(400, message, param) from error
            raise RequestError(400, str(error), param) from error
        except Exception as error:  # a chat template raises errors of its own
            if not request.chat:
                raise
            reason = f"{type(error).__name__}: {str(error)[:300]}"
            raise RequestError(400, f"The chat template refuses these messages: {reason}.", param) from error
        if not found:
            raise RequestError(400, f"`{param}` has no tokens: there is nothing to continue.", param)
        return found

    def _limit(self, policy: Policy, ids: list[int], request: Request) -> int:
        """Maximum number of tokens of a completion."""
        usual, context = self.defaults.max_completion_length, policy.context
        asked = usual if request.max_tokens is None else request.max_tokens
        if not context:
            if asked > usual:
                raise RequestError(
                    400, f"`{request.max_tokens_field}` may be at most {usual} here (--max_completion_length).",
                    request.max_tokens_field,
                )  # fmt: skip
            return asked
        space = context - len(ids)
        if space < 1 or (request.max_tokens is not None and asked > space):
            param = request.max_tokens_field if space >= 1 else "messages" if request.chat else "prompt"
            raise RequestError(
                400,
                f"The context length of {self.models.named(request.model)!r} is {context} tokens, but the prompt has "
                f"{len(ids)}, and {asked} more are asked for (`{request.max_tokens_field}`).",
                param,
                "context_length_exceeded",
            )
        return min(asked, space)


def _route_of(path: str) -> str:
    """The route of a path; empty if there is none. Names of models may have slashes."""
    if path.startswith("/v1/models/") and path != "/v1/models/":
        return _MODEL_ROUTE
    return path if path in _ROUTES and path != _MODEL_ROUTE else ""


def _notify(events: "asyncio.Queue[Event]") -> Any:
    """A function that other threads call with events for a queue of the running event loop."""
    loop = asyncio.get_running_loop()

    def notify(event: Event) -> None:
        with suppress(RuntimeError):  # the loop is closed: the server ends
            loop.call_soon_threadsafe(events.put_nowait, event)

    return notify


class _Events:
    """The events of a job, until its client goes away."""

    def __init__(self, queue: "asyncio.Queue[Event]", gone: "asyncio.Task[None]") -> None:
        self._queue, self._gone = queue, gone

    async def next(self) -> Event:
        """
        The next event.

        Raises:
            [`ClientGone`]: The client closed the connection.
        """
        if not self._queue.empty() and not self._gone.done():
            return self._queue.get_nowait()
        get = asyncio.ensure_future(self._queue.get())
        try:
            await asyncio.wait([get, self._gone], return_when=asyncio.FIRST_COMPLETED)
            if self._gone.done():
                raise ClientGone
            return get.result()
        finally:
            get.cancel()
