# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""What can go wrong with a server, as types: what it was, and whether another try may help."""

import http.client
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime


# Worth another try: the server was busy, restarting, or something between us and it failed.
_TRANSIENT = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 520, 522, 524, 529})
# What a 429 says that no waiting cures.
_OUT_OF_CREDIT = ("insufficient_quota", "billing_not_active", "billing_hard_limit_reached")


class EndpointError(RuntimeError):
    """
    A server could not be used. The subclasses say why.

    Attributes:
        status (`int`): HTTP status, `0` where there was none.
        transient (`bool`): Whether another try may succeed. If it was raised nevertheless, the tries are used up.
        retry_after (`float`): Seconds that the server asked to wait, `0` where it did not.
    """

    def __init__(self, message: str, *, status: int = 0, transient: bool = False, retry_after: float = 0.0) -> None:
        super().__init__(message)
        self.status, self.transient, self.retry_after = status, transient, retry_after


class EndpointUnreachable(EndpointError):
    """No connection, a connection that was cut, or no answer in time."""


class EndpointBusy(EndpointError):
    """Status 429: too many requests, or no credit."""


class EndpointFailed(EndpointError):
    """Status 5xx."""


class RequestRefused(EndpointError):
    """Any other status than 200: the request, its key or its address is wrong."""


class BadAnswer(EndpointError):
    """Status 200 with something else than the protocol has: no JSON, no choices, numbers that are none."""


class MissingLogprobs(EndpointError):
    """The server does not say how likely tokens are."""


class TooFewLogprobs(MissingLogprobs):
    """The server names fewer tokens than were asked for."""


class EndpointClosed(EndpointError):
    """The client was closed while the request waited."""


def of_status(where: str, status: int, headers: http.client.HTTPMessage, text: str) -> EndpointError:
    """The fault that an HTTP status other than 200 stands for."""
    message = f"{where}: status {status}: {text}"
    if status == 429:
        transient = not any(word in text for word in _OUT_OF_CREDIT)
        return EndpointBusy(message, status=status, transient=transient, retry_after=_retry_after(headers))
    transient = status in _TRANSIENT
    kind: type[EndpointError] = EndpointFailed if status >= 500 else RequestRefused
    return kind(message, status=status, transient=transient, retry_after=_retry_after(headers) if transient else 0.0)


def _retry_after(headers: http.client.HTTPMessage) -> float:
    """Seconds that the server asks to wait: a number, or the time until a date."""
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
    """What a server said, short enough for a message."""
    text = " ".join(text.split())
    return (text[:length] + "...") if len(text) > length else text or "(nothing)"
