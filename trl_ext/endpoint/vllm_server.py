# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Completions from a vLLM server (`vllm serve`) that already has the model: no weights are sent to it."""

import math
import time
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from trl_ext.data.completion import Completion, decode_after
from trl_ext.generation.vllm_settings import VLLMSettings
from trl_ext.generation_settings import GenerationSettings
from trl_ext.progress import progress

from .client import Endpoint
from .errors import BadAnswer, EndpointError
from .protocol import ask, served_models


# Settings sent under their own names, zeros too: vLLM replaces what is missing by the model's generation config.
_SAMPLING_FIELDS = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
_POLL_SECONDS = 2.0


class VLLMServer:
    """
    Samples from a vLLM server. It does not need vLLM to be installed here.

    Args:
        name (`str`):
            Path or name on the Hub of the model, which the server must have.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            The tokenizer of the model.
        settings ([`~trl_ext.generation_settings.GenerationSettings`]):
            How to sample.
        args ([`~trl_ext.generation.vllm_settings.VLLMSettings`]):
            Address of the server, and how long to wait until it has started.

    Raises:
        `ConnectionError`: The server cannot be reached, or answers with an error.
        `ValueError`: It has another model, or vLLM lacks one of the settings.
    """

    def __init__(
        self, name: str, tokenizer: PreTrainedTokenizerBase, settings: GenerationSettings, args: VLLMSettings
    ) -> None:
        args.check_sampling(settings)
        self.tokenizer, self.settings = tokenizer, settings
        self._address = args.vllm_address.rstrip("/")
        # One request is a whole batch, so its answer may take any time.
        self.endpoint = Endpoint(f"{self._address}/v1", self._served_name(name, args), timeout=math.inf)

    def __call__(self, prompts: list[list[int]]) -> list[list[Completion]]:
        """
        Generate K completions per prompt.

        Args:
            prompts (`list[list[int]]`): Token ids of P prompts.

        Returns:
            `list[list[Completion]]`: P lists of K completions.

        Raises:
            `ConnectionError`: The server cannot be reached, or answers with an error.
        """
        if not prompts:
            return []
        k = self.settings.num_generations
        fields = {name: getattr(self.settings, name) for name in _SAMPLING_FIELDS}
        fields |= {"return_token_ids": True, **(self.settings.generation_kwargs or {})}
        try:
            with progress("sampling", len(prompts)) as phase:
                answers = ask(self.endpoint, prompts, n=k, max_tokens=self.settings.max_completion_length, **fields)
                phase.advance(len(prompts))
            if len(answers) != k * len(prompts):
                raise BadAnswer(f"{len(answers)} completions came for {len(prompts)} prompts, {k} for each were asked")
            if any(answer.ids is None for answer in answers):
                raise BadAnswer("it returns no token ids (`return_token_ids`), so it is not vLLM or an old version")
        except EndpointError as error:
            raise ConnectionError(f"the vLLM server at {self._address}: {error}") from error
        rows = [answer.ids or [] for answer in answers]
        texts = decode_after(self.tokenizer, [prompt for prompt in prompts for _ in range(k)], rows)
        found = [Completion(text, ids, answer.ended) for text, ids, answer in zip(texts, rows, answers, strict=True)]
        return [found[i : i + k] for i in range(0, len(found), k)]

    def _served_name(self, name: str, args: VLLMSettings) -> str:
        """The model's name on the server; a model of another name has other token ids."""
        served = self._wait_for_models(name, args.vllm_server_timeout)
        for each in served:
            if _own_name(each) == _own_name(name):
                return each
        raise ValueError(
            f"the vLLM server at {self._address} has {', '.join(map(repr, served))}, not {name!r}. If it is the same "
            f"model, start the server with `--served-model-name {_own_name(name)}`."
        )

    def _wait_for_models(self, name: str, seconds: float) -> list[str]:
        """Names of the server's models, asked for until it has started or the time is over."""
        endpoint = Endpoint(f"{self._address}/v1", name)
        deadline = time.monotonic() + seconds
        try:
            while True:
                try:
                    return served_models(endpoint)
                except EndpointError as error:
                    if not error.transient or time.monotonic() >= deadline:
                        raise ConnectionError(
                            f"the vLLM server at {self._address} cannot be used: {error} Start it with `vllm serve "
                            f"{name}`, or wait longer for it (vllm_server_timeout, now {seconds:g} s)."
                        ) from error
                time.sleep(_POLL_SECONDS)
        finally:
            endpoint.close()


def _own_name(name: str) -> str:
    """The last part of a path or a name on the Hub; for a trainer's checkpoint, the directory above it too."""
    parts = (str(Path(name).resolve()) if Path(name).is_dir() else name.rstrip("/")).split("/")
    return "/".join(parts[-2:] if parts[-1].startswith("checkpoint-") else parts[-1:])
