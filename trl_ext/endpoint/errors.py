# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Errors of servers: a type for each kind, and whether another try may succeed."""

from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime


# Worth another try, beside 429 and 5xx: the server is busy or restarting, or something between us and it failed.
_TRANSIENT = frozenset({408, 409, 425})
# Those of 5xx that stay: what was asked for is not implemented, or a certificate is invalid.
_PERMANENT = frozenset({501, 505, 526})
# Reasons for a 429 that waiting does not cure.
_OUT_OF_CREDIT = ("insufficient_quota", "billing_not_active", "billing_hard_limit_reached")


class EndpointError(RuntimeError):
    """
    A request to a server failed. The subclass is the kind of failure.

    Attributes:
        status (`int`): HTTP status; `0` if there was no response.
        transient (`bool`): Whether another try may succeed. If it was raised nevertheless, no tries were left.
        retry_after (`float`): Seconds that the server asked to wait; `0` if it did not ask.
    """

    def __init__(self, message: str, *, status: int = 0, transient: bool = False, retry_after: float = 0.0) -> None:
        super().__init__(message)
        self.status, self.transient, self.retry_after = status, transient, retry_after


class EndpointUnreachable(EndpointError):
    """The connection could not be made or was lost, or there was no answer in time."""


class EndpointBusy(EndpointError):
    """Status 429: too many requests, or no credit left."""


class EndpointFailed(EndpointError):
    """Status 5xx."""


class RequestRefused(EndpointError):
    """Any other status than 200: the request, its key or its address is wrong."""


class BadAnswer(EndpointError):
    """
    Status 200, but the body does not follow the protocol: not JSON, no choices, or an invalid number. Gateways answer
    so for a server that is overloaded, and models that share a batch with others may overflow, so it is repeated.
    """


class MissingLogprobs(EndpointError):
    """The server returns no log-probabilities."""


class TooFewLogprobs(MissingLogprobs):
    """The server returns log-probabilities of fewer tokens than requested."""


class EndpointClosed(EndpointError):
    """The client was closed before the request was sent."""


def error_of_status(where: str, status: int, headers: Mapping[str, str], text: str) -> EndpointError:
    """
    The error for an HTTP status other than 200.

    Args:
        where (`str`): Address, for the message.
        status (`int`): HTTP status.
        headers (`Mapping[str, str]`): Headers of the response, looked up in any case.
        text (`str`): Body of the response, for the message.
    """
    message = f"{where}: status {status}: {text}"
    if status == 429:
        transient = not any(word in text for word in _OUT_OF_CREDIT)
        return EndpointBusy(message, status=status, transient=transient, retry_after=_retry_after(headers))
    transient = status in _TRANSIENT or (500 <= status < 600 and status not in _PERMANENT)
    kind: type[EndpointError] = EndpointFailed if status >= 500 else RequestRefused
    return kind(message, status=status, transient=transient, retry_after=_retry_after(headers) if transient else 0.0)


def _retry_after(headers: Mapping[str, str]) -> float:
    """Seconds that the server asks to wait, from a header with a number or a date."""
    value = headers.get("Retry-After") or ""
    try:
        return max(float(value), 0.0) if float(value) < float("inf") else 0.0
    except ValueError:
        pass
    try:
        then = parsedate_to_datetime(value)
    except ValueError:
        return 0.0
    then = then if then.tzinfo else then.replace(tzinfo=UTC)
    return max((then - datetime.now(UTC)).total_seconds(), 0.0)


def excerpt(text: str, length: int = 300) -> str:
    """A server's message on one line, shortened to fit in an error."""
    text = " ".join(text.split())
    return (text[:length] + "...") if len(text) > length else text or "(nothing)"
