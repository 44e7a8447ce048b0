# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""The models of servers, with what each server says about them, and requests for their answers."""

import contextlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from trl_ext.endpoint.client import Endpoint
from trl_ext.endpoint.errors import BadAnswer, EndpointError, RequestRefused, excerpt

from .answers import Answer
from .chunks import Chunk, read_chunk


NO_GUIDES = "No token values: nothing that scores tokens guides this model. Colours show log-probabilities."
ONLY_LOGPROBS = "No token values: this server returns log-probabilities only, which the colours show."
NOTHING = "This server returns neither token values nor log-probabilities, so that tokens have no colours."


@dataclass(frozen=True)
class SourceModel:
    """
    A model of a server.

    Args:
        endpoint ([`~trl_ext.endpoint.client.Endpoint`]): The server.
        name (`str`): Its name on the server.
        label (`str`): Its name on the page, which no other model has.
        ours (`bool`): Whether the server is `trl-ext serve`.
        weights (`dict[str, float]`, *optional*): Weights of what guides it; `None` if requests cannot change them. The
            only head may have the name `""`, if it is not known.
        about (`dict[str, str]`): What to know about heads to choose their weights.
        guidance (`bool`): Whether answers have values of tokens.
        chat (`bool`): Whether it takes messages, as far as the server says.
    """

    endpoint: Endpoint
    name: str
    label: str
    ours: bool = False
    weights: dict[str, float] | None = None
    about: dict[str, str] = field(default_factory=dict)
    guidance: bool = False
    chat: bool = True


def models_of(endpoint: Endpoint, title: str = "", weights: Mapping[str, float] | None = None) -> list[SourceModel]:
    """
    The models of a server.

    Args:
        endpoint ([`~trl_ext.endpoint.client.Endpoint`]): The server.
        title (`str`, *optional*, defaults to `""`): What labels have beside the name, to tell servers apart.
        weights (`dict[str, float]`, *optional*): Weights of the value models inside a server of vLLM, which does not
            list them. A server of `trl-ext serve` does, and these are not used.

    Raises:
        [`~trl_ext.endpoint.errors.EndpointError`]: The server cannot be reached, or does not list models.
    """
    body = endpoint.get("models")
    try:
        found = [_model(endpoint, each, title, weights) for each in body["data"]]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BadAnswer(f"{endpoint.base_url}/models: not a list of models: {excerpt(str(body))}") from error
    if not found:
        raise BadAnswer(f"{endpoint.base_url}/models: the server has no models.")
    return found


def _model(
    endpoint: Endpoint, given: Mapping[str, Any], title: str, inside: Mapping[str, float] | None
) -> SourceModel:
    name = str(given["id"])
    ours = given.get("owned_by") == "trl-ext"
    weights = given.get("beta") if ours else inside
    return SourceModel(
        endpoint,
        name,
        f"{name} ({title})" if title else name,
        ours=ours,
        weights=None if weights is None else {str(head): float(weight) for head, weight in weights.items()},
        about=dict(given.get("beta_about") or {}) if ours else {},
        guidance=bool(ours and given.get("guidance")),
        chat=bool(given.get("chat", True)) if ours else True,
    )


@dataclass(frozen=True)
class Ask:
    """
    What is asked of each model of a comparison.

    Args:
        prompt (`str`): The prompt.
        chat (`bool`): Whether it is a message of the user; otherwise a text that the model continues.
        system (`str`): System message before it; empty for none.
        sampling (`dict[str, Any]`): Fields of the request: temperature, top_p, top_k, max_tokens, seed.
        candidates (`int`): Number of candidates to show for each token; 0 for none, and no colours.
    """

    prompt: str
    chat: bool
    system: str
    sampling: dict[str, Any]
    candidates: int = 8

    def body(self, model: SourceModel, weights: Mapping[str, float] | None) -> dict[str, Any]:
        """The request for a model, without log-probabilities or values."""
        system = [{"role": "system", "content": self.system}] if self.system else []
        text: dict[str, Any] = {"prompt": self.prompt}
        if self.chat:
            text = {"messages": [*system, {"role": "user", "content": self.prompt}]}
        # Only some servers have top_k, where 0 is off.
        sampling = {name: value for name, value in self.sampling.items() if name != "top_k" or value or model.ours}
        return {"model": model.name, **text, **sampling, **_weight_fields(model, weights)}

    def scores(self, model: SourceModel) -> dict[str, Any]:
        """The fields that ask for values, or else for log-probabilities."""
        if not self.candidates:
            return {}
        if model.guidance:
            return {"guidance": self.candidates}
        if self.chat:
            return {"logprobs": True, "top_logprobs": self.candidates}
        return {"logprobs": self.candidates}


def _weight_fields(model: SourceModel, weights: Mapping[str, float] | None) -> dict[str, Any]:
    """The fields of a request that have its weights: those of `trl-ext serve`, or of value models inside vLLM."""
    if weights is None:
        return {}
    if model.ours:
        return {"beta": dict(weights)}
    alone = weights.get("")
    named = ",".join(f"{head}={weight}" for head, weight in weights.items())
    return {"vllm_xargs": {"beta": named if alone is None else alone}}


def stream_chunks(
    ask: Ask, model: SourceModel, weights: Mapping[str, float] | None, answer: Answer
) -> Iterator[Chunk]:
    """
    Ask a model, and return the chunks of its answer. The answer's `note` is set to what the server does not return.

    Raises:
        [`~trl_ext.endpoint.errors.EndpointError`] or `ValueError`: It failed. [`reason`] says why in a sentence.
    """
    if ask.chat and not model.chat:
        raise ValueError(
            "This model has no chat template, so it takes no messages: choose “a text to continue” under Sampling."
        )
    path = "chat/completions" if ask.chat else "completions"
    body, scores = ask.body(model, weights), ask.scores(model)
    try:
        yield from _noted(model.endpoint.stream(path, body | scores), model, scores, answer)
    except RequestRefused as error:
        # Some servers, and some models of ours, refuse requests for log-probabilities.
        if answer.tokens or not scores or not any(name in str(error) for name in ("logprob", "log-prob", "log_prob")):
            raise
        answer.note = (
            f"The server refuses to return log-probabilities, so that tokens have no colours: {reason(error)}"
        )
        yield from map(read_chunk, model.endpoint.stream(path, body))


def _noted(
    bodies: Iterator[dict[str, Any]], model: SourceModel, scores: Mapping[str, Any], answer: Answer
) -> Iterator[Chunk]:
    for body in bodies:
        chunk = read_chunk(body)
        if scores and not model.guidance and not answer.note and chunk.tokens:
            known = any(token.chosen is not None for token in chunk.tokens)
            answer.note = (NO_GUIDES if model.ours else ONLY_LOGPROBS) if known else NOTHING
        yield chunk


_STATUS = re.compile(r"status (\d+): ")
_MESSAGE = re.compile(r'"message"\s*:\s*("(?:[^"\\]|\\.)*")')


def reason(error: BaseException) -> str:
    """Why a request failed: the server's own words where it has some, and what to do where we know."""
    text = str(error) or type(error).__name__
    message = _MESSAGE.search(text)
    if message is not None:
        with contextlib.suppress(ValueError):
            text = str(json.loads(message[1]))
    if isinstance(error, EndpointError) and not error.status:
        text += " Is the server running, and is its address right?"
    return text
