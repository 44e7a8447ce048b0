# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Answers of a server to many prompts: several at once, written to a file, or as a policy; guided or not."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import chain
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from trl_ext.data.chat_template import template_kwargs
from trl_ext.data.completion import Completion
from trl_ext.data.prompts import check_several
from trl_ext.data.row_threads import NotBegun, run_rows, until_a_failure
from trl_ext.data.schema import as_completion
from trl_ext.decoding.scheduled_rows import GuidedTokens
from trl_ext.endpoint.client import Endpoint
from trl_ext.endpoint.next_tokens import request_fields, sample_blocks
from trl_ext.endpoint.protocol import Prompt
from trl_ext.endpoint.tokens import ServedText
from trl_ext.generation_settings import GenerationSettings
from trl_ext.progress import progress

from .dataset_sampler import OUTPUT_COLUMNS
from .policy import MessageIds, Policy


@dataclass(frozen=True, slots=True)
class Served:
    """
    An answer of a server, guided or not.

    Args:
        completion ([`~trl_ext.data.completion.Completion`]):
            Its text and token ids.
        kl (`float`):
            How far guidance moved the answer from the server's model, in nats. In token mode, the sum over tokens of
            the KL from the guided distribution to the server's, at temperature 1: its mean over answers is the KL to
            the server's model. In block and answer mode, the sum over rounds of log(n p), where p is the probability
            of the chosen one of n blocks: its mean over answers is an upper bound of that KL.
        tail (`float`):
            Probability of the tokens that the server did not return, averaged over the tokens that were chosen here; 0
            in block mode.
        guided, tokens (`int`, *optional*, default to `0`):
            Number of guided tokens, and of all tokens, in token mode.
    """

    completion: Completion
    kl: float
    tail: float
    guided: int = 0
    tokens: int = 0


def answer_all(
    answer: Callable[..., Served],
    prompts: Sequence[Prompt],
    settings: GenerationSettings,
    *,
    workers: int,
    seed: int | str = 0,
) -> list[list[Served]]:
    """
    Answer each prompt `num_generations` times, several at once.

    Args:
        answer (`Callable`): `(prompt, settings, seed=) -> Served`, safe to call from several threads.
        prompts (`Sequence`): Text, token ids or messages.
        settings ([`~trl_ext.generation_settings.GenerationSettings`]): How to answer.
        workers (`int`): Number of threads.
        seed (`int` or `str`, *optional*, defaults to `0`): The seed of each answer is derived from it.

    Returns:
        `list[list[Served]]`: `num_generations` answers for each prompt.

    Raises:
        `ValueError`: `prompts` is a single prompt.
    """
    check_several(prompts)
    begin = until_a_failure(answer, threading.Event())
    with progress("sampling", len(prompts)) as phase, ThreadPoolExecutor(workers) as pool:
        jobs = [
            [pool.submit(begin, prompt, settings, seed=f"{seed} {i} {k}") for k in range(settings.num_generations)]
            for i, prompt in enumerate(prompts)
        ]
        answers = []
        try:
            for row in jobs:
                answers.append([job.result() for job in row])
                phase.advance()
        except NotBegun:
            wait(chain(*jobs))
            failures = (error for job in chain(*jobs) if (error := job.exception()) is not None)
            raise next(error for error in failures if not isinstance(error, NotBegun)) from None
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
) -> int:
    """
    Answer the prompts of a dataset and write the rows to a file, each as soon as it is done. After an interruption or
    a failure, the same call continues with the missing rows.

    Args:
        answer (`Callable`): As for [`answer_all`]; also takes `chat_template_kwargs`.
        rows (`Sequence[dict]`): Rows with a `prompt`. `tools` and `chat_template_kwargs` reach the chat template.
            Other columns are kept, but for those of completions that the dataset has, such as their scores.
        output_file (`str`): `.jsonl` or `.parquet`. Rows get the columns `completions`, `ended`, `kl` and `tail`
            (lists) and `row_index`; `trl-ext sample --dataset_completions` can score them.
        settings ([`~trl_ext.generation_settings.GenerationSettings`]): How to answer.
        endpoint ([`~trl_ext.endpoint.client.Endpoint`]): The client of the server; Ctrl-C closes it.
        made_with (`dict[str, Any]`): Everything else that the answers depend on.
        seed (`int`, *optional*, defaults to `0`): The seed of each answer is derived from it.
        overwrite: As for [`~trl_ext.data.row_threads.run_rows`].

    Returns:
        `int`: Number of rows that this call answered.

    Raises:
        [`~trl_ext.endpoint.errors.EndpointError`]: The server failed for good. The rows in the file stay there.
    """

    def work(index: int, row: dict[str, Any]) -> dict[str, Any]:
        one = partial(answer, row["prompt"], settings, chat_template_kwargs=template_kwargs(row))
        found = [one(seed=f"{seed} {index} {k}") for k in range(settings.num_generations)]
        kept = {name: value for name, value in row.items() if name == "prompt" or name not in OUTPUT_COLUMNS}
        return kept | {
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
        stop=endpoint.close,
    )


def served_policy(
    answer: Callable[..., Served],
    tokenizer: PreTrainedTokenizerBase,
    endpoint: Endpoint,
    **fields: Any,
) -> Policy:
    """
    A [`~trl_ext.inference.policy.Policy`] that gets its completions from a server. It has no `logps`; its completions
    have the `kl` of [`Served`].

    Args:
        answer (`Callable`): As for [`answer_all`]; also takes `show`, called with the text so far.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): The tokenizer for prompts.
        endpoint ([`~trl_ext.endpoint.client.Endpoint`]): The client of the server.
        fields: Further fields of the policy, among them its `name`. With `takes_messages`, `answer` gets messages
            and `chat_template_kwargs`.

    Raises:
        `ValueError`: When called: `takes_messages` is set, and a prompt is text.
    """

    guided: GuidedTokens | None = fields.get("guided")
    if fields.get("takes_messages"):
        answer = partial(_answer_messages, answer)

    def next_seed() -> int:
        return int(torch.randint(2**62, ()))

    def generate(prompts: list[list[int]], settings: GenerationSettings) -> list[list[Completion]]:
        answers = answer_all(answer, prompts, settings, workers=endpoint.max_concurrency, seed=next_seed())
        if guided is not None:
            for served in chain(*answers):
                guided.add(served.guided, served.tokens)
        return [[replace(served.completion, kl=served.kl) for served in row] for row in answers]

    def stream(ids: list[int], settings: GenerationSettings, show: Callable[[str], None]) -> Completion:
        shown = 0

        def grown(text: str) -> None:
            nonlocal shown
            if not text.endswith("\ufffd"):  # an incomplete character
                show(text[shown:])
                shown = len(text)

        completion = answer(ids, settings, seed=next_seed(), show=grown).completion
        show(completion.text[shown:])
        return completion

    return Policy(tokenizer=tokenizer, generate=generate, stream=stream, **fields)


def _answer_messages(
    answer: Callable[..., Served], ids: list[int], settings: GenerationSettings, **kwargs: Any
) -> Served:
    """Answer the messages of a prompt."""
    if not isinstance(ids, MessageIds):
        raise ValueError(
            "The chat endpoint takes messages, and a prompt is text: use the completions endpoint, or prompts of "
            "messages."
        )
    return answer(ids.messages, settings, chat_template_kwargs=ids.template, **kwargs)


def unguided_policy(
    tokenizer: PreTrainedTokenizerBase, endpoint: Endpoint, *, chat: bool = False, **fields: Any
) -> Policy:
    """
    The [`~trl_ext.inference.policy.Policy`] of a server's model as it is, the baseline of guided ones. The server
    samples with a seed of its own.

    Args:
        chat (`bool`, *optional*, defaults to `False`): Whether to use the chat endpoint.
        tokenizer, endpoint, fields: As for [`served_policy`].
    """

    def answer(
        prompt: Prompt,
        settings: GenerationSettings,
        *,
        seed: int | str = 0,
        show: Callable[[str], None] | None = None,
        chat_template_kwargs: dict[str, Any] | None = None,
    ) -> Served:
        check_served_settings(settings)
        text = ServedText(tokenizer, prompt, chat=chat, by_id=False, chat_template_kwargs=chat_template_kwargs)
        [found] = sample_blocks(endpoint, text, 1, settings.max_completion_length, **request_fields(settings))
        text.add_text(found.text)
        if show is not None:
            show(text.answer)
        end = [tokenizer.eos_token_id] if found.ended or not text.answer_ids else []
        return Served(Completion(text.answer, [*text.answer_ids, *end], found.ended), 0.0, 0.0)

    return served_policy(answer, tokenizer, endpoint, takes_messages=chat, **fields)


def check_served_settings(settings: GenerationSettings) -> None:
    """Raise a `ValueError` if there are settings that a server's API lacks."""
    if settings.num_beams > 1 or settings.repetition_penalty != 1 or settings.generation_kwargs:
        raise ValueError("An endpoint has no num_beams, repetition_penalty or generation_kwargs: unset them.")
