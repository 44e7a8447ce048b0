# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
`trl-ext serve`: an OpenAI-compatible server of a model, guided or not.

    trl-ext serve --model_name_or_path M
    trl-ext serve --model_name_or_path M --value_model_name_or_path value --beta 2 --load_in_4bit true

Each combination that is loaded is a model of its own for clients. A request may choose the weights of guides by
`beta`.
"""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from trl_ext.inference.policy import Decoding, served_at_once
from trl_ext.rewards.functions import load_rewards
from trl_ext.rewards.scoring import check_reward_weights
from trl_ext.rewards.settings import RewardSettings
from trl_ext.serving.app import App
from trl_ext.serving.limits import ServerLimits
from trl_ext.serving.models import ServedModels
from trl_ext.serving.server import Server, bind, check_uvicorn, is_local

from .arguments import LoadingArguments, RewardArguments, SamplingArguments
from .decoding_flags import active_decodings, decoding_classes
from .models import load_guided
from .parser import Parser


@dataclass
class ServeArguments(SamplingArguments, RewardArguments, RewardSettings):
    """Which model is served, and where. Settings of the sampling are those of requests that do not give them."""

    refused_settings: ClassVar[dict[str, str]] = {
        "num_generations": "requests choose it: `n`",
        "generation_batch_size": "called `max_batch_size` here",
        "cuda_graphs": "a server sees each token, and a CUDA graph shows none",
    }

    model_name_or_path: str | None = field(
        default=None, metadata={"help": "Model to serve: Hub id, directory, LoRA adapter directory."}
    )
    served_model_name: str | None = field(
        default=None, metadata={"help": "Its name in requests. By default the Hub id, or the directory's name."}
    )
    reward_weights: list[float] | None = field(
        default=None,
        metadata={
            "help": "Weights of the rewards that rank the completions of `best_of_n`, --reward_model_name_or_path "
            "first. All 1 by default."
        },
    )
    host: str = field(
        default="127.0.0.1", metadata={"help": "Address to listen on. By default only this machine reaches it."}
    )
    port: int = field(default=8000, metadata={"help": "Port to listen on. 0 takes a free one."})
    api_key_variable: str = field(
        default="", metadata={"help": "Environment variable with the key that requests must have. Empty: none."}
    )

    # `init=False`: they are no flags.
    num_generations: int = field(default=1, init=False)
    generation_batch_size: int = field(default=0, init=False)
    cuda_graphs: str = field(default="never", init=False)

    def __post_init__(self) -> None:
        self.check_reward_settings()
        check_reward_weights(self.reward_weights, self.rewards)
        if not 0 <= self.port < 2**16:
            raise ValueError(f"`port` must be between 0 and 65535, got {self.port}.")
        self.settings()
        self.api_key()

    def api_key(self) -> str:
        """
        The key from the environment; empty if none is asked for.

        Raises:
            `ValueError`: The variable is not set, or holds no key; or the server is open to other machines without
                one.
        """
        if not self.api_key_variable:
            if not is_local(self.host):
                raise ValueError(
                    f"`host` {self.host!r} can be reached from other machines: set a key with --api_key_variable."
                )
            return ""
        key = os.environ.get(self.api_key_variable, "").strip()
        if not key or not key.isascii() or not key.isprintable():
            raise ValueError(
                f"`api_key_variable` names {self.api_key_variable!r}, which must hold a key of printable ASCII."
            )
        return key


def load_models(
    args: ServeArguments, limits: ServerLimits, loading: LoadingArguments, decodings: Sequence[Decoding] = ()
) -> ServedModels:
    """Load the model and what guides it."""
    plain, guided = load_guided(
        str(args.model_name_or_path),
        loading,
        decodings,
        batch_size=limits.max_batch_size,
        served_name=args.served_model_name or "",
    )
    rewards = load_rewards(args.rewards, settings=args, trust_remote_code=loading.trust_remote_code)
    return ServedModels(plain, guided, rewards=rewards, reward_weights=args.reward_weights)


def run(
    args: ServeArguments, limits: ServerLimits, loading: LoadingArguments, decodings: Sequence[Decoding] = ()
) -> int:
    """
    Serve until a signal ends it.

    Args:
        args ([`ServeArguments`]), limits ([`~trl_ext.serving.limits.ServerLimits`]),
        loading ([`~trl_ext.cli.arguments.LoadingArguments`]): What is served, and how.
        decodings (`Sequence[Decoding]`, *optional*): Guidance of the model, already checked.

    Returns:
        `int`: 0.
    """
    check_uvicorn()
    if served_at_once(decodings):
        raise ValueError("the model of another server is served there already: remove the flag that names the server.")
    with bind(args.host, args.port) as sock:
        models = load_models(args, limits, loading, decodings)
        app = App(
            models,
            defaults=args.settings(),
            limits=limits,
            api_key=args.api_key(),
            local_only=is_local(args.host),
            seed=args.seed,
        )
        host, port = sock.getsockname()[:2]
        address = f"http://{f'[{host}]' if ':' in host else host}:{port}/v1"

        def ready() -> None:
            print(f"serving {', '.join(models.by_name)} at {address} (Ctrl-C ends)", file=sys.stderr, flush=True)

        Server(app, sock).run(ready)
    return 0


def make_parser(prog: str = "trl-ext serve") -> Parser:
    """The parser of the command's flags and YAML file."""
    own = [ServeArguments, ServerLimits, LoadingArguments]
    return Parser(
        [*own, *decoding_classes(own)],
        prog=prog,
        description="Serve a model by OpenAI's API: /v1/models, /v1/completions, /v1/chat/completions. Methods that "
        "guide a frozen model add flags of their own, and requests choose the weights of guides by `beta`.",
        epilog="`trl-ext chat` holds a conversation without a server.",
    )


def main(argv: list[str]) -> int:
    """
    `trl-ext serve`.

    Returns:
        `int`: See [`run`].

    Raises:
        `ValueError`, `OSError` or `ImportError`: Settings or models that cannot work.
    """
    parser = make_parser()
    args, limits, loading, *decodings = parser.parse_args_and_config(argv)
    return run(args, limits, loading, active_decodings(decodings, parser.given))
