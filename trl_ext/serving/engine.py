# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
The queue of jobs, and the thread that generates their completions in batches.

One thread generates, as models and guides keep caches that belong to one generation at a time. It takes the oldest
completion that waits, and with it those that wait for the same model, weights and settings. Their seeds, lengths and
stop texts may differ.
"""

import logging
import threading
from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import replace

import torch

from trl_ext.data.completion import truncated
from trl_ext.generation.observer import Observer, Step
from trl_ext.seeds import fork_rng

from .jobs import Done, Failed, Job, Row, Seen
from .limits import RequestError, ServerLimits
from .metrics import Metrics
from .models import ServedModels, no_guidance


logger = logging.getLogger(__name__)


class _RowsObserver(Observer):
    """Gives rows their tokens, and ends those that are finished or that nobody waits for."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = rows
        self.seeds = [row.seed for row in rows]
        wanted = [row.job.logprobs for row in rows if row.job.logprobs is not None]
        self.top_logprobs = max(wanted) if wanted else None
        shown = [row.job.guidance for row in rows if row.job.guidance is not None]
        self.top_candidates = max(shown) if shown else None

    def see(self, step: Step) -> Collection[int]:
        if self.top_logprobs is not None and step.logprobs is None:  # before any row has its token
            raise _no_logprobs()
        over = set()
        for place, (number, token, ended) in enumerate(zip(step.rows, step.tokens, step.ended, strict=True)):
            row = self.rows[number]
            if row.job.cancelled.is_set():
                over.add(number)
                continue
            logprobs = None
            if row.job.logprobs is not None:
                assert step.logprobs is not None
                logprobs = replace(step.logprobs[place], top=step.logprobs[place].top[: row.job.logprobs])
            guidance = None
            if row.job.guidance is not None:
                if step.guidance is None:
                    raise no_guidance(row.job.key.model)
                guidance = step.guidance[place]
                guidance = replace(guidance, candidates=guidance.candidates[: row.job.guidance])
            if row.add(Seen(token, logprobs, guidance), ended):
                over.add(number)
        return over


def _no_logprobs() -> RequestError:
    message = "`logprobs` are not available for this model, whose tokens are not chosen from one distribution."
    return RequestError(400, message, "logprobs")


class Engine:
    """
    Generates the completions of jobs, in a thread of its own.

    Args:
        models ([`~trl_ext.serving.models.ServedModels`]): The models.
        limits ([`~trl_ext.serving.limits.ServerLimits`]): Limits of the queue and the batches.
        metrics ([`~trl_ext.serving.metrics.Metrics`]): Counts what is generated.
    """

    def __init__(self, models: ServedModels, limits: ServerLimits, metrics: Metrics) -> None:
        self.models, self.limits, self.metrics = models, limits, metrics
        self.running = 0  # completions of the current batch
        self._waiting: deque[Row] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="trl-ext serve: generation", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    @property
    def waiting(self) -> int:
        """Number of jobs of which something waits."""
        with self._changed:
            return len({id(row.job) for row in self._waiting})

    def submit(self, job: Job) -> None:
        """
        Put a job in the queue.

        Raises:
            [`~trl_ext.serving.limits.RequestError`]: The queue is full, or the server shuts down.
        """
        with self._changed:
            if self._closed:
                raise RequestError(503, "The server shuts down.", retry_after=30)
            if len({id(row.job) for row in self._waiting}) >= self.limits.max_waiting:
                raise RequestError(
                    429,
                    f"{self.limits.max_waiting} requests wait already: try again later.",
                    code="rate_limit_exceeded",
                    retry_after=5,
                )
            self._waiting.extend(job.rows)
            self._changed.notify()

    def cancel(self, job: Job) -> None:
        """Stop working on a job: what waits is dropped, and what is generated ends with the next token."""
        job.cancelled.set()
        with self._changed:
            self._waiting = deque(row for row in self._waiting if row.job is not job)

    def stop(self, timeout: float = 5.0) -> None:
        """End the thread, with what it generates. Jobs that wait fail."""
        with self._changed:
            self._closed = True
            rows, self._waiting = list(self._waiting), deque()
            self._changed.notify()
        for job in {id(row.job): row.job for row in rows}.values():
            job.cancelled.set()
            job.notify(Failed(RequestError(503, "The server shuts down.", retry_after=30)))
        if self._thread.is_alive():
            self._thread.join(timeout)

    def _run(self) -> None:
        while rows := self._next_batch():
            self.metrics.add("batches_total")
            self.metrics.add("batch_rows_total", len(rows))
            try:
                self._generate(rows)
            except Exception as error:
                self._fail(rows, error)
            self.running = 0
            self._finish(rows)

    def _next_batch(self) -> list[Row]:
        """The oldest completion that waits and those that fit to it; empty if the server shuts down."""
        with self._changed:
            while not self._waiting and not self._closed:
                self._changed.wait()
            if self._closed:
                return []
            first, context = self._waiting[0], self.models.by_name[self._waiting[0].job.key.model].context
            chosen: list[Row] = []
            left: deque[Row] = deque()
            width = limit = 0
            for row in self._waiting:
                longest = max(width, len(row.prompt_ids)) + max(limit, row.limit)
                fits = not chosen or (
                    row.job.key == first.job.key
                    and (not context or longest <= context)  # they are padded to one length
                    and (row.job is first.job or not (row.job.alone or first.job.alone))
                )
                if len(chosen) < self.limits.max_batch_size and fits:
                    chosen.append(row)
                    width, limit = max(width, len(row.prompt_ids)), max(limit, row.limit)
                else:
                    left.append(row)
            self._waiting, self.running = left, len(chosen)
            return chosen

    def _generate(self, rows: list[Row]) -> None:
        key = rows[0].job.key
        policy = self.models.policy(key.model, key.beta, shows_guidance=key.shows_guidance)
        settings = replace(key.settings, max_completion_length=max(row.limit for row in rows))
        prompts = [row.prompt_ids for row in rows]
        observer = _RowsObserver(rows)
        if policy.observable:
            policy.generate(prompts, settings, observer=observer)
            return
        if observer.top_logprobs is not None:
            raise _no_logprobs()
        with fork_rng(rows[0].seed):
            completions = policy.generate(prompts, settings)
        for row, [completion] in zip(rows, completions, strict=True):
            kept = truncated(completion, row.limit, policy.tokenizer)
            for token in kept.ids[:-1]:
                if row.add(Seen(token), False):
                    break
            else:
                row.add(Seen(kept.ids[-1]), kept.ended)

    def _finish(self, rows: list[Row]) -> None:
        """Tell the jobs whose last completions these were."""
        for job in {id(row.job): row.job for row in rows}.values():
            mine = [row for row in rows if row.job is job]
            self.metrics.add("completion_tokens_total", sum(len(row.tokens) for row in mine))
            with self._changed:
                again = any(row in self._waiting for row in mine)
            if again or job.cancelled.is_set():
                continue
            for row in mine:
                row.close()
            if job.finished:
                try:
                    if job.best_of_n > 1:
                        self.models.keep_best(job)
                except Exception as error:
                    self._fail(mine, error)
                else:
                    job.notify(Done())

    def _fail(self, rows: list[Row], error: Exception) -> None:
        """
        Answer jobs with an error. Those that shared a batch are tried one by one before, if nothing was sent yet, as
        one of them may have caused it.
        """
        jobs = list({id(row.job): row.job for row in rows}.values())
        if len(jobs) > 1 and not any(row.tokens for row in rows):
            for job in jobs:
                job.alone = True
            with self._changed:
                self._waiting.extendleft(row for row in reversed(rows) if not row.job.cancelled.is_set())
            return
        if isinstance(error, RequestError):
            answer = error
        elif isinstance(error, ValueError):  # settings that this policy cannot have, such as temperature 0 for blocks
            logger.warning("A batch of %d completions was refused.", len(rows), exc_info=error)
            answer = RequestError(400, f"The model refuses this request: {str(error)[:500]}")
        elif isinstance(error, torch.OutOfMemoryError):
            logger.error("Out of memory with a batch of %d completions.", len(rows))
            answer = RequestError(
                503, "The server has not enough memory for this request: ask for fewer or shorter completions."
            )
        else:
            logger.error("A batch of %d completions failed.", len(rows), exc_info=error)
            answer = RequestError(500, "The server failed to generate; its log has the reason.")
        for job in jobs:
            job.notify(Failed(answer))
            self.cancel(job)
