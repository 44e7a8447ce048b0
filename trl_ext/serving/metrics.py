# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""What the server counts, and its text in the format of Prometheus."""

import threading
from collections import Counter
from collections.abc import Mapping


_HELP = {
    "requests_total": ("counter", "Requests, by route and status."),
    "prompt_tokens_total": ("counter", "Tokens of the prompts that were answered."),
    "completion_tokens_total": ("counter", "Tokens that were generated."),
    "batches_total": ("counter", "Batches that were generated."),
    "batch_rows_total": ("counter", "Completions in these batches."),
    "cancelled_total": ("counter", "Requests whose client went away before the end."),
    "waiting_requests": ("gauge", "Requests that wait for a batch."),
    "running_completions": ("gauge", "Completions that are being generated."),
    "request_seconds": ("histogram", "Seconds from a request for completions to the end of its answer."),
}
BUCKETS = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)


class Metrics:
    """Counters of the server. Safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[tuple[str, tuple[tuple[str, str], ...]]] = Counter()
        self._buckets = [0] * (len(BUCKETS) + 1)
        self._seconds = 0.0

    def add(self, name: str, amount: float = 1, **labels: str) -> None:
        """Add to a counter."""
        with self._lock:
            self._counts[name, tuple(sorted(labels.items()))] += amount  # type: ignore[assignment]

    def observe_seconds(self, seconds: float) -> None:
        """Count the duration of a request."""
        with self._lock:
            self._buckets[sum(bound < seconds for bound in BUCKETS)] += 1
            self._seconds += seconds

    def value(self, name: str, **labels: str) -> float:
        """A counter."""
        with self._lock:
            return self._counts[name, tuple(sorted(labels.items()))]

    def render(self, gauges: Mapping[str, float]) -> str:
        """
        All counters as text.

        Args:
            gauges (`Mapping[str, float]`): The current values of the gauges.
        """
        with self._lock:
            counts, buckets, seconds = dict(self._counts), list(self._buckets), self._seconds
        lines = []
        for name, (kind, text) in _HELP.items():
            full = f"trl_ext_{name}"
            lines += [f"# HELP {full} {text}", f"# TYPE {full} {kind}"]
            if kind == "histogram":
                bounds = [*map(str, BUCKETS), "+Inf"]
                sums = [sum(buckets[: i + 1]) for i in range(len(buckets))]
                lines += [f'{full}_bucket{{le="{bound}"}} {n}' for bound, n in zip(bounds, sums, strict=True)]
                lines += [f"{full}_sum {seconds:.6f}", f"{full}_count {sums[-1]}"]
            elif kind == "gauge":
                lines.append(f"{full} {gauges[name]:g}")
            else:
                found = {labels: value for (own, labels), value in counts.items() if own == name}
                if name != "requests_total":
                    found = {(): 0, **found}
                lines += [f"{full}{_labels(labels)} {value:.15g}" for labels, value in found.items()]
        return "\n".join(lines) + "\n"


def _labels(labels: tuple[tuple[str, str], ...]) -> str:
    inside = ",".join(f'{name}="{value}"' for name, value in labels)
    return f"{{{inside}}}" if inside else ""
