# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Many prompts answered through a server: several at once, into a file, and as a policy."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from trl_ext.data.completion import Completion
from trl_ext.data.prompts import check_several
from trl_ext.data.resumable_file import run_rows
from trl_ext.data.schema import as_completion
from trl_ext.endpoint.client import Endpoint
from trl_ext.endpoint.protocol import Prompt
from trl_ext.generation_settings import GenerationSettings

from .policy import Policy


@dataclass(frozen=True, slots=True)
class Served:
    """
    An answer that was drawn through a server.

    Args:
        completion ([`~trl_ext.generation.generate.Completion`]):
            Its text and token ids.
        kl (`float`):
            What drawing it here changed, in nats. By tokens: the KL of each guided distribution to the server's,
            at temperature 1, summed over the answer; its mean is the KL to the server's model. By blocks: the sum over
            rounds of log(n times the probability of the block kept among n), whose mean is an upper bound of it.
        tail (`float`):
            Mean over tokens of the probability of all that the server did not name; 0 by blocks.
    """

    completion: Completion
    kl: float
    tail: float


def answer_all(
    answer: Callable[..., Served],
    prompts: Sequence[Prompt],
    settings: GenerationSettings,
    *,
    workers: int,
    seed: int | str = 0,
    progress: Callable[[int], Any] | None = None,
) -> list[list[Served]]:
    """
    Answer prompts, `num_generations` times each, several at once.

    Args:
        answer (`Callable`): `(prompt, settings, seed=) -> Served`, safe to call from several threads.
        prompts (`Sequence`): Text, token ids or messages.
        settings ([`~trl_ext.generation.generate.GenerationSettings`]): How to answer.
        workers (`int`): Threads.
        seed (`int` or `str`, *optional*, defaults to `0`): Each answer gets its own from it.
        progress (`Callable`, *optional*): Called with 1 for each prompt that is done.

    Raises:
        `ValueError`: A single prompt was passed.
    """
    check_several(prompts)
    with ThreadPoolExecutor(workers) as pool:
        jobs = [
            [pool.submit(answer, prompt, settings, seed=f"{seed} {i} {k}") for k in range(settings.num_generations)]
            for i, prompt in enumerate(prompts)
        ]
        answers = []
        try:
            for row in jobs:
                answers.append([job.result() for job in row])
                if progress is not None:
                    progress(1)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return answers


def answer_file(
    answer: Callable[..., Served],
    rows: Sequence[dict[str, Any]],
    output_file: str,
    settings: GenerationSettings,
    endpoint: Endpoint,
    made_with: dict[str, Any],
    *,
    seed: int = 0,
    overwrite: bool = False,
    progress: Callable[[int], Any] | None = None,
) -> int:
    """
    Answer the prompts of a data set into a file, each row written when it is done. The same call goes on after an
    interruption or a failure, and asks for nothing twice.

    Args:
        answer (`Callable`): As for [`answer_all`].
        rows (`Sequence[dict]`): With a `prompt`; other columns are kept.
        output_file (`str`): `.jsonl` or `.parquet`. Rows get the columns `completions`, `ended`, `kl` and `tail`
            (lists) and `row_index`; `trl-ext sample --dataset_completions` scores them.
        settings ([`~trl_ext.generation.generate.GenerationSettings`]): How to answer.
        endpoint ([`~trl_ext.endpoint.client.Endpoint`]): The server, closed at Ctrl-C.
        made_with (`dict[str, Any]`): All else that the answers depend on.
        seed (`int`, *optional*, defaults to `0`): Each answer gets its own from it.
        overwrite, progress: As for [`~trl_ext.data.resumable_file.run_rows`].

    Returns:
        `int`: Rows that were answered by this call.

    Raises:
        [`~trl_ext.endpoint.errors.EndpointError`]: The server failed for good. What is written stays.
    """

    def work(index: int, row: dict[str, Any]) -> dict[str, Any]:
        prompt = row["prompt"]
        found = [answer(prompt, settings, seed=f"{seed} {index} {k}") for k in range(settings.num_generations)]
        return row | {
            "completions": [as_completion(row, served.completion.text) for served in found],
            "ended": [served.completion.ended for served in found],
            "kl": [served.kl for served in found],
            "tail": [served.tail for served in found],
        }

    return run_rows(
        rows,
        work,
        output_file,
        made_with | {"settings": asdict(settings), "seed": seed},
        workers=endpoint.max_concurrency,
        overwrite=overwrite,
        progress=progress,
        stop=endpoint.close,
    )


def served_policy(
    answer: Callable[..., Served],
    tokenizer: PreTrainedTokenizerBase,
    endpoint: Endpoint,
    *,
    progress: Callable[[int], Any] | None = None,
    **fields: Any,
) -> Policy:
    """
    What answers through a server, as a [`~trl_ext.inference.policy.Policy`]. It has no `logps`: [`Served`] has a `kl`.

    Args:
        answer (`Callable`): As for [`answer_all`]; takes `show` as well, called with the text so far.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): Turns prompts into ids.
        endpoint ([`~trl_ext.endpoint.client.Endpoint`]): The server.
        progress (`Callable`, *optional*): Called with 1 for each prompt that is done.
        fields: Further fields of the policy, among them its `name`.
    """

    def draw_seed() -> int:
        return int(torch.randint(2**62, ()))

    def generate(prompts: list[list[int]], settings: GenerationSettings) -> list[list[Completion]]:
        answers = answer_all(
            answer, prompts, settings, workers=endpoint.max_concurrency, seed=draw_seed(), progress=progress
        )
        return [[served.completion for served in row] for row in answers]

    def stream(ids: list[int], settings: GenerationSettings, show: Callable[[str], None]) -> Completion:
        shown = 0

        def grown(text: str) -> None:
            nonlocal shown
            if not text.endswith("\ufffd"):  # half a character
                show(text[shown:])
                shown = len(text)

        completion = answer(ids, settings, seed=draw_seed(), show=grown).completion
        show(completion.text[shown:])
        return completion

    return Policy(tokenizer=tokenizer, generate=generate, stream=stream, **fields)
