# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Runs the application on a socket with uvicorn, until a signal ends it."""

import asyncio
import ipaddress
import logging
import socket
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

from trl_ext.packages import UVICORN, is_installed

from .app import App
from .jobs import Failed
from .limits import RequestError


logger = logging.getLogger(__name__)


def check_uvicorn() -> None:
    """Raise an `ImportError` that says what to install, before models are loaded."""
    if not is_installed(UVICORN):
        raise ImportError("a server needs uvicorn: pip install 'trl-ext[serve]'")


def is_local(host: str) -> bool:
    """Whether only this machine reaches a server on this address."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def bind(host: str, port: int) -> socket.socket:
    """
    A socket on an address.

    Args:
        host (`str`): Name or address.
        port (`int`): Port; 0 takes a free one.

    Raises:
        `OSError`: The address is not of this machine, or the port is taken.
    """
    try:
        [(family, _, _, _, address), *_] = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        return socket.create_server(address, family=family, backlog=1024)
    except OSError as error:
        raise OSError(f"cannot serve on {host} port {port}: {error}. Choose others with --host and --port.") from error


class Server:
    """
    Serves an application until SIGTERM, SIGINT or [`stop`].

    The first signal lets running requests finish, for up to `shutdown_timeout` seconds; new ones get status 503. The
    second ends at once.

    Args:
        app ([`~trl_ext.serving.app.App`]): The application.
        sock (`socket.socket`): The socket that it listens on.
    """

    def __init__(self, app: App, sock: socket.socket) -> None:
        import uvicorn

        self.app, self.sock = app, sock
        config = uvicorn.Config(
            app,
            http="h11",
            ws="none",
            lifespan="off",
            loop="asyncio",
            log_config=None,
            log_level="warning",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=30,
            timeout_graceful_shutdown=1,
        )
        on_signal = self._on_signal

        class Uvicorn(uvicorn.Server):
            def handle_exit(self, sig: int, frame: FrameType | None) -> None:
                on_signal()  # its own would close the socket, and new requests would get no answer

        self._server = Uvicorn(config)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._draining: asyncio.Task[None] | None = None
        self._signals = 0

    def run(self, ready: Callable[[], Any] | None = None) -> None:
        """
        Serve. In the main thread signals are handled.

        Args:
            ready (`Callable`, *optional*): Called when requests can be sent.
        """
        self.app.engine.start()
        try:
            asyncio.run(self._serve(ready))
        finally:
            self.app.engine.stop()
            self.sock.close()

    async def _serve(self, ready: Callable[[], Any] | None) -> None:
        self._loop = asyncio.get_running_loop()
        if ready is not None:
            self._loop.call_later(0, ready)
        await self._server.serve(sockets=[self.sock])

    def stop(self) -> None:
        """End as after a signal. May be called from any thread."""
        self._on_signal()

    def _on_signal(self) -> None:
        self._signals += 1
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._end, self._signals > 1)

    def _end(self, at_once: bool) -> None:
        self.app.draining = True
        if at_once:
            self._close()
        elif self._draining is None:
            self._draining = asyncio.ensure_future(self._drain())

    async def _drain(self) -> None:
        """Wait for the running requests, as long as they may take."""
        end = asyncio.get_running_loop().time() + self.app.limits.shutdown_timeout
        while self.app.active and asyncio.get_running_loop().time() < end:
            await asyncio.sleep(0.02)
        self._close()

    def _close(self) -> None:
        for job in list(self.app.in_flight):  # its request then ends, and cancels it
            job.notify(Failed(RequestError(503, "The server has shut down before the end of the answer.")))
        self._server.should_exit = True


def run_in_thread(server: Server, timeout: float = 10.0) -> threading.Thread:
    """Serve in a thread of its own, for notebooks and tests. Returns when requests can be sent."""
    ready = threading.Event()
    thread = threading.Thread(target=server.run, args=(ready.set,), daemon=True)
    thread.start()
    if not ready.wait(timeout):
        raise RuntimeError("The server did not start in time.")
    return thread
