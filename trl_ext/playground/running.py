# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Starts the page, and servers for the models that are loaded: from the command line, a notebook or a Space."""

import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trl_ext.endpoint.client import Endpoint
from trl_ext.endpoint.errors import EndpointError
from trl_ext.generation_settings import GenerationSettings
from trl_ext.packages import GRADIO, is_installed
from trl_ext.serving.app import App
from trl_ext.serving.limits import ServerLimits
from trl_ext.serving.models import ServedModels
from trl_ext.serving.server import Server, bind, is_local, run_in_thread

from .sources import SourceModel, models_of, reason


if TYPE_CHECKING:
    import gradio

CONNECTIONS = 64  # at once to a server: more than the answers of some twenty visitors


def check_gradio() -> None:
    """Raise an `ImportError` that says what to install, before models are loaded."""
    if not is_installed(GRADIO):
        raise ImportError("the playground needs gradio: pip install 'trl-ext[playground]'")


def check_open(host: str, password: str) -> None:
    """Raise a `ValueError` if other machines would reach a page without a password. A Space is meant to be open."""
    if not is_local(host) and not password and "SPACE_ID" not in os.environ:
        raise ValueError(
            f"`host` {host!r} can be reached from other machines: set a password with --password_variable."
        )


class Playground:
    """
    A running playground.

    Args:
        page (`gradio.Blocks`): The page.
        url (`str`): Its address.
        servers (`Sequence`): The servers that it has started.
        folder (`tempfile.TemporaryDirectory`): Where exports are written.

    Attributes:
        url (`str`): The address of the page.
    """

    def __init__(
        self,
        page: "gradio.Blocks",
        url: str,
        servers: Sequence[Server],
        folder: "tempfile.TemporaryDirectory[str]",
    ) -> None:
        self.page, self.url, self._servers, self._folder = page, url, servers, folder

    def __repr__(self) -> str:
        return f"Playground({self.url!r})"

    def wait(self) -> None:
        """Wait until the page is closed, or Ctrl-C; then end the servers."""
        try:
            self.page.block_thread()
        finally:
            self.close()

    def close(self) -> None:
        """Close the page, and end the servers that were started for it."""
        self.page.close(verbose=False)
        for server in self._servers:
            server.stop()
            server.stop()  # without waiting for running answers
        self._folder.cleanup()


def launch(
    *models: ServedModels,
    servers: Sequence[str | Endpoint] = (),
    server_beta: Mapping[str, float] | None = None,
    defaults: GenerationSettings | None = None,
    limits: ServerLimits | None = None,
    seed: int = 42,
    max_weight: float = 10.0,
    host: str = "127.0.0.1",
    port: int = 0,
    password: str = "",
    **settings: Any,
) -> Playground:
    """
    Start the playground and return at once. In a notebook, the page appears below the cell.

    Args:
        models ([`~trl_ext.serving.models.ServedModels`]):
            Models that are loaded, each plain and with whatever guides it.
        servers (`Sequence[str | Endpoint]`, *optional*):
            Servers with OpenAI's API, by address or as a client: those of `trl-ext serve`, vLLM and others.
        server_beta (`dict[str, float]`, *optional*):
            Weights of the value models inside these servers, for vLLM with `trl_ext.vllm:ValueGuide`, which does not
            list them; `{"": 2.0}` for one head without a name. The sliders begin with them.
        defaults ([`~trl_ext.generation_settings.GenerationSettings`], *optional*):
            The sampling settings that the page begins with.
        limits ([`~trl_ext.serving.limits.ServerLimits`], *optional*):
            Limits of the servers for `models`.
        seed (`int`, *optional*, defaults to `42`):
            The seed that the page begins with.
        max_weight (`float`, *optional*, defaults to `10.0`):
            Sliders of weights go from minus this to this, and further if a model begins with more.
        host (`str`, *optional*, defaults to `"127.0.0.1"`), port (`int`, *optional*, defaults to `0`):
            Where the page is. Port 0 takes the first free one from 7860.
        password (`str`, *optional*, defaults to `""`):
            Password that visitors need, with any name. Needed if other machines reach the page, except on a Space.
        settings:
            Passed to gradio's `launch`.

    Raises:
        `ImportError`: gradio is not installed.
        `ValueError`: There is no model, a setting is out of range, or the page would be open without a password.
        [`~trl_ext.endpoint.errors.EndpointError`]: A server cannot be reached.
    """
    check_gradio()
    check_open(host, password)
    if not max_weight > 0:
        raise ValueError(f"`max_weight` must be above 0, got {max_weight}.")
    defaults = defaults or GenerationSettings(num_generations=1)
    endpoints = [each if isinstance(each, Endpoint) else remote(each) for each in servers]
    found = known_models(endpoints, server_beta)
    started: list[Server] = []
    folder: tempfile.TemporaryDirectory[str] | None = None
    try:
        for each in models:
            server = _serve(each, defaults, limits, seed)
            started.append(server)
            address = f"http://127.0.0.1:{server.sock.getsockname()[1]}/v1"
            local = Endpoint(address, "", timeout=float("inf"), max_concurrency=CONNECTIONS, use_proxies=False)
            found = [*models_of(local), *found]
        if not found:
            raise ValueError("there is no model: pass models that are loaded, or `servers`.")
        from .page import build, start

        folder = tempfile.TemporaryDirectory(prefix="trl-ext-playground-")
        page = build(distinct(found), defaults, seed=seed, max_weight=max_weight, folder=Path(folder.name))
        url = start(page, host=host, port=port, password=password, **settings)
    except BaseException:
        for server in started:
            server.stop()
            server.stop()
        if folder is not None:
            folder.cleanup()
        raise
    return Playground(page, url, started, folder)


def remote(address: str, *, key_variable: str = "", timeout: float = 300.0) -> Endpoint:
    """A client of a server, for the page."""
    return Endpoint(address, "", api_key_variable=key_variable, timeout=timeout, max_concurrency=CONNECTIONS)


def known_models(endpoints: Sequence[Endpoint], weights: Mapping[str, float] | None = None) -> list[SourceModel]:
    """
    The models of servers.

    Args:
        endpoints (`Sequence[Endpoint]`): The servers.
        weights (`dict[str, float]`, *optional*): As `server_beta` of [`launch`].

    Raises:
        `ValueError`: There are weights, and all servers list their own.
        [`~trl_ext.endpoint.errors.EndpointError`]: A server cannot be reached, or does not list models. The message
            has its address.
    """
    found: list[SourceModel] = []
    for endpoint in endpoints:
        title = endpoint.base_url.partition("://")[2].removesuffix("/v1")
        try:
            found += models_of(endpoint, title, weights)
        except EndpointError as error:
            raise type(error)(f"{endpoint.base_url}: {reason(error)}", status=error.status) from error
    if weights is not None and all(model.ours for model in found):
        raise ValueError("`server_beta` has no effect: the models of `trl-ext serve` come with their weights.")
    return found


def distinct(models: Sequence[SourceModel]) -> list[SourceModel]:
    """
    The models, if their labels differ.

    Raises:
        `ValueError`: Two models have one label.
    """
    labels = [model.label for model in models]
    twice = sorted({label for label in labels if labels.count(label) > 1})
    if twice:
        raise ValueError(f"two models are called {twice[0]!r}: give one of them another name.")
    return list(models)


def _serve(models: ServedModels, defaults: GenerationSettings, limits: ServerLimits | None, seed: int) -> Server:
    """A server for the page alone: on this machine, at a free port."""
    app = App(models, defaults=defaults, limits=limits, local_only=True, seed=seed)
    server = Server(app, bind("127.0.0.1", 0))
    run_in_thread(server)
    return server
