# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
Requests in OpenAI's form, read field by field: what is unknown, unsupported or out of range is refused by name.

Nothing in a request is a path, code or a template. The arguments of the chat template that a request may give are
numbers, truth values and texts, under names that the tokenizer's own method has no use for.
"""

import inspect
import math
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from typing import Any

from transformers import PreTrainedTokenizerBase

from trl_ext.generation_settings import GenerationSettings

from .limits import RequestError, ServerLimits


Prompt = str | list[int] | list[dict[str, Any]]

# Sent by clients as a matter of course, without an effect on what a model generates.
IGNORED = frozenset("user metadata store service_tier safety_identifier prompt_cache_key".split())
_COMMON = frozenset(
    "model stream stream_options n max_tokens max_completion_tokens max_completion_length temperature top_p top_k "
    "min_p repetition_penalty stop seed beta best_of_n reward_weights logprobs guidance return_token_ids "
    "return_tokens_as_token_ids".split()
)
_COMPLETIONS = _COMMON | {"prompt"}
_CHAT = _COMMON | frozenset(
    "messages top_logprobs chat_template_kwargs add_generation_prompt continue_final_message".split()
)
# Accepted at the values at which they change nothing; refused with this reason at others.
UNSUPPORTED: dict[str, tuple[tuple[Any, ...], str]] = {
    "echo": (
        (False,),
        "the log-probabilities of a prompt are not computed; prepend the prompt to the answer yourself",
    ),
    "best_of": ((1,), "use `best_of_n`, which ranks by a reward"),
    "suffix": (("",), "models here continue a text, and do not fill gaps"),
    "presence_penalty": ((0,), "use `repetition_penalty`"),
    "frequency_penalty": ((0,), "use `repetition_penalty`"),
    "logit_bias": (({},), "guide the model by a value model or a guide file instead"),
    "response_format": (({"type": "text"},), "answers are text"),
    "tools": (([],), "answers are text, and calls of tools in it are not parsed"),
    "tool_choice": (("none", "auto"), "there are no tools"),
    "functions": (([],), "there are no tools"),
    "parallel_tool_calls": ((True, False), "there are no tools"),
    "modalities": ((["text"],), "answers are text"),
    "reasoning_effort": ((), "pass what the chat template takes in `chat_template_kwargs`"),
}
_ROLES = ("system", "user", "assistant", "tool")
_MESSAGE_FIELDS = frozenset({"role", "content", "name", "reasoning_content"})
_MAX_STOPS, _MAX_STOP_LENGTH = 16, 1024


@dataclass(frozen=True)
class Request:
    """
    A request for completions.

    Args:
        chat (`bool`): Whether it is for the chat endpoint.
        model (`str`, *optional*): Name of the model.
        prompts (`list`): Texts, token ids, or one conversation.
        settings ([`~trl_ext.generation_settings.GenerationSettings`]): How to sample. Its `max_completion_length` is
            not used.
        max_tokens (`int`, *optional*): Maximum length of a completion, if the request gives one.
        max_tokens_field (`str`): The field that gave it.
        n (`int`): Completions per prompt.
        best_of_n (`int`): Completions of which the best one is kept.
        reward_weights (`dict[str, float]`, *optional*): Weights of the rewards that choose it.
        beta (`float` or `dict[str, float]`, *optional*): Weights of the guides.
        stop (`tuple[str, ...]`): Texts that end a completion.
        seed (`int`, *optional*): Seed of the sampling.
        logprobs (`int`, *optional*): Number of likeliest tokens whose log-probabilities are returned.
        guidance (`int`, *optional*): Number of candidates that are returned for each token, with their values and
            their probabilities before and after guidance.
        stream (`bool`), include_usage (`bool`): Whether to send the answer as it grows, and the count of tokens last.
        names_by_id (`bool`): Whether tokens are named `token_id:17`.
        with_ids (`bool`): Whether the answer has the ids of its tokens.
        template (`dict[str, Any]`): Arguments of the chat template.
    """

    chat: bool
    model: str | None
    prompts: list[Prompt]
    settings: GenerationSettings
    max_tokens: int | None = None
    max_tokens_field: str = "max_tokens"
    n: int = 1
    best_of_n: int = 1
    reward_weights: dict[str, float] | None = None
    beta: float | dict[str, float] | None = None
    stop: tuple[str, ...] = ()
    seed: int | None = None
    logprobs: int | None = None
    guidance: int | None = None
    stream: bool = False
    include_usage: bool = False
    names_by_id: bool = False
    with_ids: bool = False
    template: dict[str, Any] = field(default_factory=dict)


class _Body:
    """The fields of a request's body. Those that are null count as not given."""

    def __init__(self, fields: dict[str, Any]) -> None:
        self.fields = {name: value for name, value in fields.items() if value is not None}

    def get(self, name: str, kind: str, default: Any = None) -> Any:
        """A field of a kind in [`_KINDS`]."""
        if name not in self.fields:
            return default
        value = self.fields[name]
        if not _KINDS[kind](value):
            raise RequestError(400, f"`{name}` must be {kind}, got {_shown(value)}.", name)
        return value

    def number(self, name: str, least: float, most: float, *, whole: bool = False, zero: bool = False) -> Any:
        """A number in a range, or 0 if that is allowed beside it; `None` if it is not given."""
        value = self.get(name, "an integer" if whole else "a number")
        if value is None or least <= value <= most or (zero and value == 0):
            return value
        also = "0, or " if zero else ""
        raise RequestError(400, f"`{name}` must be {also}between {least:g} and {most:g}, got {_shown(value)}.", name)


def _is_text(value: Any) -> bool:
    if not isinstance(value, str):
        return False
    try:
        value.encode()  # half of a surrogate pair is no text that can be tokenized
    except UnicodeEncodeError:
        return False
    return True


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    if _is_integer(value):
        return abs(value) < 2**64
    return isinstance(value, float) and math.isfinite(value)


_KINDS: dict[str, Callable[[Any], bool]] = {
    "text": _is_text,
    "an integer": _is_integer,
    "a number": _is_number,
    "true or false": lambda value: isinstance(value, bool),
    "an object": lambda value: isinstance(value, dict),
    "a list": lambda value: isinstance(value, list),
}


def _shown(value: Any) -> str:
    try:
        text = repr(value)
    except RecursionError:
        return "something deeply nested"
    return text if len(text) <= 80 else f"{text[:80]}..."


def read_request(
    fields: Any,
    *,
    chat: bool,
    defaults: GenerationSettings,
    limits: ServerLimits,
) -> Request:
    """
    Read the body of a request.

    Args:
        fields (`Any`): The body, parsed as JSON.
        chat (`bool`): Whether it is for the chat endpoint.
        defaults ([`~trl_ext.generation_settings.GenerationSettings`]): The settings that a request does not give.
        limits ([`~trl_ext.serving.limits.ServerLimits`]): The server's limits.

    Raises:
        [`~trl_ext.serving.limits.RequestError`]: A field is missing, unknown, not supported or out of range. The
            error names it.
    """
    if not isinstance(fields, dict):
        raise RequestError(400, f"The body must be a JSON object, got {_shown(fields)}.")
    body = _Body(fields)
    _check_names(body, _CHAT if chat else _COMPLETIONS)
    max_tokens_field, max_tokens = _max_tokens(body)
    stream = body.get("stream", "true or false", False)
    n = body.number("n", 1, limits.max_request_completions, whole=True) or 1
    best_of_n = body.number("best_of_n", 1, limits.max_request_completions, whole=True) or 1
    prompts: list[Prompt] = [_messages(body)] if chat else _prompts(body)
    count = len(prompts) * n * best_of_n
    if count > limits.max_request_completions:
        param = "n" if n > 1 else "best_of_n" if best_of_n > 1 else "prompt"
        raise RequestError(
            400,
            f"The request asks for {count} completions (prompts times n times best_of_n), and one may have "
            f"{limits.max_request_completions}: send several requests.",
            param,
        )
    if best_of_n > 1 and stream:
        raise RequestError(
            400, "`best_of_n` is chosen when all completions are there: set `stream` to false.", "stream"
        )
    reward_weights = _weights(body, "reward_weights", "an object of a number for each reward")
    if reward_weights is not None and best_of_n == 1:
        raise RequestError(
            400, "`reward_weights` choose among the completions of `best_of_n`: set it above 1.", "reward_weights"
        )
    return Request(
        chat=chat,
        model=body.get("model", "text"),
        prompts=prompts,
        settings=_settings(body, defaults),
        max_tokens=max_tokens,
        max_tokens_field=max_tokens_field,
        n=n,
        best_of_n=best_of_n,
        reward_weights=reward_weights,
        beta=_beta(body),
        stop=_stop(body),
        seed=body.number("seed", -(2**63), 2**63 - 1, whole=True),
        logprobs=_logprobs(body, chat, limits.max_logprobs),
        guidance=body.number("guidance", 0, limits.max_logprobs, whole=True),
        stream=stream,
        include_usage=_include_usage(body, stream),
        names_by_id=body.get("return_tokens_as_token_ids", "true or false", False),
        with_ids=body.get("return_token_ids", "true or false", False),
        template=_template(body, prompts[0]) if chat else {},
    )


def _check_names(body: _Body, known: Collection[str]) -> None:
    for name, value in body.fields.items():
        if name in UNSUPPORTED:
            neutral, reason = UNSUPPORTED[name]
            if not any(value == each and isinstance(value, bool) == isinstance(each, bool) for each in neutral):
                raise RequestError(400, f"`{name}` is not supported: {reason}.", name, "unsupported_parameter")
        elif name not in known and name not in IGNORED:
            raise RequestError(
                400, f"There is no field `{name[:100]}` here. Known fields: {', '.join(sorted(known))}.", name[:100],
                "unknown_parameter",
            )  # fmt: skip


def _max_tokens(body: _Body) -> tuple[str, int | None]:
    names = ("max_tokens", "max_completion_tokens", "max_completion_length")
    given = {name: body.number(name, 1, 2**31, whole=True) for name in names if name in body.fields}
    if len(set(given.values())) > 1:
        raise RequestError(
            400, f"{' and '.join(f'`{name}`' for name in given)} differ: send one of them.", [*given][1]
        )
    return next(iter(given.items()), ("max_tokens", None))


def _settings(body: _Body, defaults: GenerationSettings) -> GenerationSettings:
    # Below 0.01 and above 100 a number in half precision may overflow.
    given = {
        "temperature": body.number("temperature", 0.01, 100, zero=True),
        "top_p": body.number("top_p", 1e-6, 1),
        "top_k": body.number("top_k", -1, 2**31, whole=True),
        "min_p": body.number("min_p", 0, 1),
        "repetition_penalty": body.number("repetition_penalty", 0.01, 100),
    }
    if given["top_k"] == -1:  # vLLM's name for off
        given["top_k"] = 0
    changes: dict[str, Any] = {
        name: value if name == "top_k" else float(value) for name, value in given.items() if value is not None
    }
    return replace(defaults, num_generations=1, **changes)


def _stop(body: _Body) -> tuple[str, ...]:
    value = body.fields.get("stop", [])
    stops = [value] if isinstance(value, str) else value
    fine = isinstance(stops, list) and len(stops) <= _MAX_STOPS
    if not fine or not all(_is_text(stop) and 0 < len(stop) <= _MAX_STOP_LENGTH for stop in stops):
        raise RequestError(
            400,
            f"`stop` must be a text or a list of up to {_MAX_STOPS} texts of 1 to {_MAX_STOP_LENGTH} characters, got "
            f"{_shown(value)}.",
            "stop",
        )
    return tuple(stops)


def _beta(body: _Body) -> float | dict[str, float] | None:
    value: Any = body.fields.get("beta")
    if _is_number(value):
        return float(value)
    return _weights(body, "beta", "a number, or an object of a number for each head")


def _weights(body: _Body, name: str, kind: str) -> dict[str, float] | None:
    value = body.fields.get(name)
    if value is None:
        return None
    if not isinstance(value, dict) or not all(map(_is_number, value.values())):
        raise RequestError(400, f"`{name}` must be {kind}; got {_shown(value)}.", name)
    return {key: float(weight) for key, weight in value.items()}


def _logprobs(body: _Body, chat: bool, most: int) -> int | None:
    if not chat:
        return body.number("logprobs", 0, most, whole=True)  # type: ignore[no-any-return]
    wanted = body.get("logprobs", "true or false", False)
    top = body.number("top_logprobs", 0, most, whole=True)
    if top and not wanted:
        raise RequestError(400, "`top_logprobs` needs `logprobs` to be true.", "top_logprobs")
    return top or 0 if wanted else None


def _include_usage(body: _Body, stream: bool) -> bool:
    options = body.get("stream_options", "an object", {})
    if options and not stream:
        raise RequestError(400, "`stream_options` needs `stream` to be true.", "stream_options")
    for name, value in options.items():
        if name not in ("include_usage", "include_obfuscation") or not isinstance(value, bool):
            raise RequestError(
                400, f"`stream_options` may have `include_usage`, true or false; got {_shown({name: value})}.",
                "stream_options",
            )  # fmt: skip
    return bool(options.get("include_usage", False))


def _prompts(body: _Body) -> list[Prompt]:
    value = body.fields.get("prompt")
    if value is None:
        raise RequestError(400, "`prompt` is missing.", "prompt")
    several = isinstance(value, list) and bool(value) and not _is_integer(value[0])
    prompts: list[Any] = value if several else [value]
    for prompt in prompts:
        is_ids = isinstance(prompt, list) and all(map(_is_integer, prompt))
        if not (prompt and (is_ids or _is_text(prompt))):
            raise RequestError(
                400, "`prompt` must be a text, a list of token ids, or a list of those, and none may be empty; got "
                f"{_shown(prompt)}.", "prompt",
            )  # fmt: skip
    return prompts


def _messages(body: _Body) -> list[dict[str, Any]]:
    messages = body.get("messages", "a list")
    if not messages:
        raise RequestError(400, "`messages` is missing or empty.", "messages")
    return [_message(message, f"messages[{i}]") for i, message in enumerate(messages)]


def _message(message: Any, where: str) -> dict[str, Any]:
    if not isinstance(message, dict):
        raise RequestError(
            400, f"`{where}` must be an object with `role` and `content`, got {_shown(message)}.", where
        )
    # Servers write lists that are empty, such as `tool_calls`, and clients send answers back as they are.
    found = {name: value for name, value in message.items() if value is not None and value != []}
    for name in found:
        if name not in _MESSAGE_FIELDS:
            raise RequestError(
                400,
                f"`{where}` has {_shown(name)}, which is not supported: a message here has "
                f"{', '.join(sorted(_MESSAGE_FIELDS))}.",
                f"{where}.{name[:100]}",
            )
    if found.get("role") not in _ROLES:
        raise RequestError(
            400,
            f"`{where}.role` must be one of {', '.join(_ROLES)}; got {_shown(found.get('role'))}.",
            f"{where}.role",
        )
    found["content"] = _content(found.get("content"), f"{where}.content")
    for name in ("name", "reasoning_content"):
        if name in found and not _is_text(found[name]):
            raise RequestError(400, f"`{where}.{name}` must be text, got {_shown(found[name])}.", f"{where}.{name}")
    return found


def _content(content: Any, where: str) -> str:
    """The text of a message, which may come in parts."""
    if _is_text(content):
        return str(content)
    parts: list[Any] = content if isinstance(content, list) and content else [None]
    for part in parts:
        if not (isinstance(part, dict) and part.get("type") == "text" and _is_text(part.get("text"))):
            raise RequestError(
                400, f"`{where}` must be text, or a list of parts of type text; got {_shown(content)}.", where
            )
    return "".join(part["text"] for part in parts)


_NOT_FOR_TEMPLATES = frozenset(inspect.signature(PreTrainedTokenizerBase.apply_chat_template).parameters)


def _template(body: _Body, messages: Any) -> dict[str, Any]:
    """Arguments of the chat template: variables of it, and whether to continue an unfinished answer."""
    found: dict[str, Any] = {}
    for name, value in body.get("chat_template_kwargs", "an object", {}).items():
        plain = isinstance(value, bool) or _is_number(value) or _is_text(value)
        if name in _NOT_FOR_TEMPLATES or not name.isidentifier() or not plain:
            raise RequestError(
                400,
                "`chat_template_kwargs` may have variables of the model's chat template that are numbers, texts, true "
                f"or false; not {_shown({name: value})}.",
                "chat_template_kwargs",
            )
        found[name] = value
    go_on = body.get("continue_final_message", "true or false", False)
    start = body.get("add_generation_prompt", "true or false", not go_on)
    if go_on is start:
        raise RequestError(
            400,
            "An answer is either started (`add_generation_prompt`) or continued (`continue_final_message`): set one.",
            "continue_final_message",
        )
    if go_on and messages[-1]["role"] != "assistant":
        raise RequestError(
            400, "`continue_final_message` needs a last message of the assistant.", "continue_final_message"
        )
    return found | ({"continue_final_message": True, "add_generation_prompt": False} if go_on else {})
