# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
`trl-ext playground`: a page with answers side by side, whose tokens are coloured by their values.

    trl-ext playground --model_name_or_path M --value_model_name_or_path value
    trl-ext playground --server http://localhost:8000/v1

Models are loaded here, or are those of servers with OpenAI's API: `trl-ext serve`, vLLM and others.
"""

import os
import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, fields
from typing import ClassVar

from trl_ext.endpoint.errors import EndpointError
from trl_ext.guides.weights import head_weights, parse_weights
from trl_ext.inference.policy import Decoding, served_at_once
from trl_ext.playground.running import check_gradio, check_open, known_models, launch, remote
from trl_ext.serving.limits import ServerLimits
from trl_ext.serving.models import ServedModels

from .arguments import LoadingArguments, SamplingArguments
from .decoding_flags import active_decodings, decoding_classes
from .models import load_guided, public_name
from .parser import Parser


@dataclass
class PlaygroundArguments(SamplingArguments):
    """Which models the page offers, and where it is. Settings of the sampling are those that it begins with."""

    refused_settings: ClassVar[dict[str, str]] = {
        "num_generations": "the page has one answer for each setting",
        "generation_batch_size": "called `max_batch_size` here",
        "cuda_graphs": "the page sees each token, and a CUDA graph shows none",
        "repetition_penalty": "the page has no part for it",
        "min_p": "the page has no part for it",
    }

    model_name_or_path: list[str] | None = field(
        default=None, metadata={"help": "Models to load: Hub ids, directories, LoRA adapter directories."}
    )
    server: list[str] | None = field(
        default=None,
        metadata={"help": "Servers with OpenAI's API whose models are offered, e.g. http://localhost:8000/v1."},
    )
    server_key_variable: str = field(
        default="", metadata={"help": "Environment variable with the key of the servers. Empty: none."}
    )
    server_timeout: float = field(
        default=300.0, metadata={"help": "Seconds to wait for the next token of a server. 0 means no limit."}
    )
    server_beta: str = field(
        default="",
        metadata={
            "help": "Weights of the value models inside servers of vLLM (trl_ext.vllm:ValueGuide), which do not list "
            "them: a number, or head=number,head=number. The sliders begin with them."
        },
    )
    max_weight: float = field(default=10.0, metadata={"help": "Sliders of weights go from minus this to this."})
    max_batch_size: int = field(
        default=16, metadata={"help": "Answers to generate at once with a model that is loaded."}
    )
    host: str = field(
        default="127.0.0.1", metadata={"help": "Address of the page. By default only this machine reaches it."}
    )
    port: int = field(default=0, metadata={"help": "Port of the page. 0 takes the first free one from 7860."})
    password_variable: str = field(
        default="", metadata={"help": "Environment variable with the password of the page. Empty: none."}
    )

    # `init=False`: they are no flags.
    num_generations: int = field(default=1, init=False)
    generation_batch_size: int = field(default=0, init=False)
    cuda_graphs: str = field(default="never", init=False)
    repetition_penalty: float = field(default=1.0, init=False)
    min_p: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        self.check_counts(max_batch_size=1)
        if not 0 <= self.port < 2**16:
            raise ValueError(f"`port` must be between 0 and 65535, got {self.port}.")
        if not self.server_timeout >= 0:
            raise ValueError(f"`server_timeout` must not be negative, got {self.server_timeout}.")
        if not self.max_weight > 0:
            raise ValueError(f"`max_weight` must be above 0, got {self.max_weight}.")
        self.server_weights()
        names = [public_name(name) for name in self.model_name_or_path or []]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"`model_name_or_path` has two models called {name!r}: rename a directory.")
        self.settings()
        check_open(self.host, self.password())

    def server_weights(self) -> dict[str, float] | None:
        """
        `server_beta` by head, of which the only one may have no name.

        Raises:
            `ValueError`: It is neither a number nor a list of heads with numbers.
        """
        if not self.server_beta:
            return None
        given = parse_weights(self.server_beta, "server_beta")
        heads = list(given) if isinstance(given, dict) else [""]
        return dict(zip(heads, head_weights(given, heads, "server_beta").rows[0], strict=True))

    def password(self) -> str:
        """
        The password from the environment; empty if none is asked for.

        Raises:
            `ValueError`: The variable is not set or empty.
        """
        if not self.password_variable:
            return ""
        found = os.environ.get(self.password_variable, "")
        if not found:
            raise ValueError(f"`password_variable` names {self.password_variable!r}, which must hold a password.")
        return found


def check_given(args: PlaygroundArguments, decodings: Sequence[Decoding], given: Collection[str]) -> None:
    """Raise a `ValueError` for settings that have no effect."""
    if served_at_once(decodings):
        raise ValueError(
            "`endpoint` has no effect on the page: pass --server, whose answers have the values of its own guides."
        )
    idle: list[str] = []
    if not args.model_name_or_path:
        idle = [*(each.name for each in fields(LoadingArguments)), "max_batch_size"]
        if decodings:
            idle = [*(each.name for each in fields(decodings[0])), *idle]  # type: ignore[arg-type]
    needed = "model_name_or_path"
    if not args.server:
        idle, needed = (idle, needed) if idle else (["server_key_variable", "server_timeout", "server_beta"], "server")
    for name in idle:
        if name in given:
            raise ValueError(f"`{name}` has no effect without `{needed}`: set that too, or remove it.")


def load_models(
    args: PlaygroundArguments, loading: LoadingArguments, decodings: Sequence[Decoding]
) -> list[ServedModels]:
    """
    Load the models, each with the guides that fit it. What does not fit one of several models is printed.

    Raises:
        `ValueError` or `OSError`: Something cannot be loaded, or a guide fits none of the models.
    """
    found = []
    unfit = dict.fromkeys(range(len(decodings)), "")
    names = args.model_name_or_path or []
    for name in names:
        plain, guided = load_guided(name, loading, (), batch_size=args.max_batch_size)
        for i, decoding in enumerate(decodings):
            try:
                guided += decoding.policies(
                    plain.model,
                    plain.tokenizer,
                    name=plain.name,
                    batch_size=args.max_batch_size,  # type: ignore[arg-type]
                )
                unfit.pop(i, None)
            except ValueError as error:
                if len(names) == 1:
                    raise
                print(f"trl-ext playground: {plain.name} stays unguided: {error}", file=sys.stderr)
                if i in unfit:
                    unfit[i] = str(error)
        found.append(ServedModels(plain, guided))
    if unfit:
        raise ValueError(f"none of the models can be guided: {next(iter(unfit.values()))}")
    return found


def run(args: PlaygroundArguments, loading: LoadingArguments, decodings: Sequence[Decoding] = ()) -> int:
    """
    Show the page until a signal ends it.

    Args:
        args ([`PlaygroundArguments`]), loading ([`~trl_ext.cli.arguments.LoadingArguments`]): The models and the page.
        decodings (`Sequence[Decoding]`, *optional*): Guidance of the models that are loaded, already checked.

    Returns:
        `int`: 0; 1 if a server cannot be reached.
    """
    check_gradio()
    timeout = args.server_timeout or float("inf")
    servers = [remote(each, key_variable=args.server_key_variable, timeout=timeout) for each in args.server or []]
    try:
        known_models(servers, args.server_weights())  # before models are loaded
        page = launch(
            *load_models(args, loading, decodings),
            servers=servers,
            server_beta=args.server_weights(),
            defaults=args.settings(),
            limits=ServerLimits(max_batch_size=args.max_batch_size, request_timeout=0),
            seed=args.seed,
            max_weight=args.max_weight,
            host=args.host,
            port=args.port,
            password=args.password(),
        )
    except EndpointError as error:
        print(f"trl-ext playground: error: {error}", file=sys.stderr)
        return 1
    print(f"the playground is at {page.url} (Ctrl-C ends)", file=sys.stderr, flush=True)
    page.wait()
    return 0


def make_parser(prog: str = "trl-ext playground") -> Parser:
    """The parser of the command's flags and YAML file."""
    own = [PlaygroundArguments, LoadingArguments]
    return Parser(
        [*own, *decoding_classes(own)],
        prog=prog,
        description="Compare answers on a page: models, guides and weights side by side, each token coloured by its "
        "value. Methods that guide a frozen model add flags of their own.",
        epilog="`trl-ext serve` offers the same models to other programs.",
    )


def main(argv: list[str]) -> int:
    """
    `trl-ext playground`.

    Returns:
        `int`: See [`run`].

    Raises:
        `ValueError`, `OSError` or `ImportError`: Settings or models that cannot work.
    """
    parser = make_parser()
    args, loading, *decodings = parser.parse_args_and_config(argv)
    found = active_decodings(decodings, parser.given)
    check_given(args, found, parser.given)
    return run(args, loading, found)
