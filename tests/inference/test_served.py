# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Several answers of a server at once: none is asked for after one has failed."""

import threading
from concurrent import futures
from typing import Any

import pytest

from trl_ext.generation_settings import GenerationSettings
from trl_ext.inference import served
from trl_ext.inference.served import answer_all


class Late(futures.ThreadPoolExecutor):
    """A pool whose jobs are over before the caller sees the first: a main thread that had to wait."""

    def submit(self, *args: Any, **kwargs: Any) -> Any:
        job = super().submit(*args, **kwargs)
        result = job.result

        def later() -> Any:
            futures.wait([job])
            return result()

        job.result = later  # type: ignore[method-assign,assignment]
        return job


@pytest.mark.parametrize("bad", ["a", "c", "z"])
@pytest.mark.parametrize("workers", [1, 3])
def test_no_answer_is_asked_for_after_a_failure(monkeypatch: pytest.MonkeyPatch, bad: str, workers: int) -> None:
    """The error is that of the answer that failed, wherever it stands among those that were left out."""
    monkeypatch.setattr(served, "ThreadPoolExecutor", Late)
    asked: list[str] = []
    lock = threading.Lock()

    def answer(prompt: str, settings: GenerationSettings, *, seed: Any) -> str:
        with lock:
            asked.append(prompt)
        if prompt >= bad:
            raise ValueError(f"{prompt} is refused")
        return prompt.upper()

    prompts = [chr(ord("a") + i) for i in range(26)]
    settings = GenerationSettings(num_generations=2)
    with pytest.raises(ValueError, match="is refused"):
        answer_all(answer, prompts, settings, workers=workers)  # type: ignore[arg-type]
    assert len(asked) <= 2 * prompts.index(bad) + workers
    found: Any = answer_all(lambda prompt, *_, **__: prompt, prompts, settings, workers=workers)  # type: ignore[arg-type,return-value]
    assert found == [[prompt, prompt] for prompt in prompts]
