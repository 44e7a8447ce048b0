# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Asks several models at once, each in a thread of its own, and keeps their answers as they grow."""

import threading
import time
from collections.abc import Iterator, Mapping, Sequence

from trl_ext.endpoint.errors import EndpointError

from .answers import Answer
from .sources import Ask, SourceModel, reason, stream_chunks


class Run:
    """
    Answers of several models to one prompt, as they grow.

    Args:
        ask ([`~trl_ext.playground.sources.Ask`]): What is asked.
        models (`Sequence`): For each answer the model and the weights of its guides.

    Attributes:
        answers (`list[Answer]`): The answers. They grow until they have a `finish_reason`.
    """

    def __init__(self, ask: Ask, models: Sequence[tuple[SourceModel, Mapping[str, float] | None]]) -> None:
        self.answers = [Answer(model.label, None if weights is None else dict(weights)) for model, weights in models]
        self._stopped = threading.Event()
        self._changed = threading.Condition()
        self._version = 0
        self._threads = [
            threading.Thread(target=self._answer, args=(ask, model, weights, answer), daemon=True)
            for (model, weights), answer in zip(models, self.answers, strict=True)
        ]

    def start(self) -> "Run":
        """Ask the models."""
        for thread in self._threads:
            thread.start()
        return self

    def stop(self) -> None:
        """
        End the answers as they are. Servers notice with the next token; one that has not begun notices when it begins.
        """
        with self._changed:
            self._stopped.set()
            for answer in self.answers:
                answer.finish_reason = answer.finish_reason or "stopped"
            self._changed.notify_all()

    def updates(self, pause: float = 0.15) -> Iterator[list[Answer]]:
        """
        The answers whenever they have grown, until all have ended.

        Args:
            pause (`float`, *optional*, defaults to `0.15`): Seconds between two updates, at least.
        """
        seen = -1
        while not all(answer.finish_reason for answer in self.answers):
            with self._changed:
                if self._version == seen and not self._stopped.is_set():
                    self._changed.wait(1.0)
                seen = self._version
            yield self.answers
            if self._stopped.wait(pause):
                break

    def _answer(self, ask: Ask, model: SourceModel, weights: Mapping[str, float] | None, answer: Answer) -> None:
        start = time.monotonic()
        chunks = stream_chunks(ask, model, weights, answer)
        finish, problem = "", ""
        try:
            for chunk in chunks:
                if self._stopped.is_set():
                    return
                with self._changed:
                    answer.tokens = [*answer.tokens, *chunk.tokens]
                    answer.seconds = time.monotonic() - start
                    self._version += 1
                    self._changed.notify_all()
                finish = chunk.finish_reason or finish
        except (EndpointError, ValueError) as error:
            problem = reason(error)
        except Exception as error:  # whatever it is, the page has to say that this answer will not come
            problem = f"{type(error).__name__}: {error}"
        finally:
            chunks.close()  # type: ignore[attr-defined]
            with self._changed:
                if not answer.finish_reason:
                    answer.error = problem or ("" if finish else "The server closed the connection without an end.")
                    answer.finish_reason = "error" if answer.error else finish
                self._version += 1
                self._changed.notify_all()
