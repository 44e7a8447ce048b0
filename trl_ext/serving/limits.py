# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Limits of the server, and the error that a request is refused with."""

from dataclasses import dataclass, field


class RequestError(Exception):
    """
    A request that gets an error for an answer.

    Args:
        status (`int`): HTTP status.
        message (`str`): What is wrong, and what to do.
        param (`str`, *optional*): The field of the body that is wrong.
        code (`str`, *optional*): OpenAI's code of the error.
        retry_after (`int`, *optional*, defaults to `0`): Seconds after which to try again. `0`: not said.
        allow (`str`, *optional*, defaults to `""`): The HTTP method to use instead.
    """

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        *,
        retry_after: int = 0,
        allow: str = "",
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.retry_after, self.allow = retry_after, allow

    def body(self) -> dict[str, object]:
        """The error in OpenAI's form."""
        kind = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}.get(
            self.status, "server_error" if self.status >= 500 else "invalid_request_error"
        )
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def _limit(default: float, text: str) -> float:
    return field(default=default, metadata={"help": text})  # type: ignore[no-any-return]


@dataclass(frozen=True)
class ServerLimits:
    """
    Limits of the server.

    Args:
        max_batch_size (`int`, *optional*, defaults to `16`):
            Maximum number of completions that are generated at once.
        max_waiting (`int`, *optional*, defaults to `256`):
            Maximum number of requests that wait. Further ones get status 429.
        max_request_completions (`int`, *optional*, defaults to `64`):
            Maximum number of completions of one request: prompts times `n` times `best_of_n`.
        max_logprobs (`int`, *optional*, defaults to `128`):
            Maximum number of likeliest tokens per position that a request may ask for.
        max_body_bytes (`int`, *optional*, defaults to `4194304`):
            Maximum size of a request's body. Larger ones get status 413.
        request_timeout (`float`, *optional*, defaults to `300.0`):
            Seconds from the arrival of a request to the end of its answer. Then it gets status 504. `0`: no limit.
        body_timeout (`float`, *optional*, defaults to `30.0`):
            Seconds that a body may take to arrive. Then its request gets status 408.
        shutdown_timeout (`float`, *optional*, defaults to `30.0`):
            Seconds that running requests have to finish after SIGTERM or Ctrl-C.

    Raises:
        `ValueError`: A limit is out of range.
    """

    max_batch_size: int = field(
        default=16, metadata={"help": "Completions to generate at once; more need more memory."}
    )
    max_waiting: int = field(default=256, metadata={"help": "Requests that may wait; further ones get status 429."})
    max_request_completions: int = field(
        default=64, metadata={"help": "Completions of one request: prompts times n times best_of_n."}
    )
    max_logprobs: int = field(default=128, metadata={"help": "Likeliest tokens per position that a request may get."})
    max_body_bytes: int = field(default=4 * 2**20, metadata={"help": "Size of a request's body; larger ones get 413."})
    request_timeout: float = _limit(300.0, "Seconds from a request to the end of its answer. 0 means no limit.")
    body_timeout: float = _limit(30.0, "Seconds that the body of a request may take to arrive.")
    shutdown_timeout: float = _limit(30.0, "Seconds that running requests have to finish after SIGTERM or Ctrl-C.")

    def __post_init__(self) -> None:
        for name in ("max_batch_size", "max_waiting", "max_request_completions", "max_body_bytes"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}.")
        for name in ("max_logprobs", "request_timeout", "shutdown_timeout"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"`{name}` must not be negative, got {getattr(self, name)}.")
        if not self.body_timeout > 0:
            raise ValueError(f"`body_timeout` must be above 0, got {self.body_timeout}.")
