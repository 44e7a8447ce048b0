# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""A value from a YAML file, as the type of a field wants it: what argparse checks for flags and TRL for neither."""

import difflib
import types
from collections.abc import Callable, Iterable
from enum import Enum
from typing import Any, Literal, Union, get_args, get_origin


_TRUE = ("yes", "true", "t", "y", "1")
_FALSE = ("no", "false", "f", "n", "0")


def convert(value: Any, annotation: Any, choices: Iterable[Any] | None = None) -> Any:
    """
    A YAML value as the type of a field wants it.

    Args:
        value (`Any`):
            What the YAML file says.
        annotation (`Any`):
            Type of the field.
        choices (`Iterable[Any]`, *optional*):
            The only values that the field may have.

    Raises:
        `ValueError`: it cannot be had; the message continues "`key` ...".
    """
    if choices is not None and value is not None:
        several = isinstance(value, list)
        return [_choose(item, list(choices)) for item in value] if several else _choose(value, list(choices))
    if annotation is Any:
        return value
    origin, arguments = _origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        return _convert_union(value, arguments)
    if origin is Literal:
        return _choose(value, list(arguments))
    if origin is list:
        items = value if isinstance(value, list) else [value]
        return [convert(item, arguments[0] if arguments else Any) for item in items]
    converter = _SCALARS.get(origin)
    if converter is not None:
        return converter(value)
    if isinstance(origin, type) and issubclass(origin, Enum):
        return _choose(value, [member.value for member in origin])
    if origin is types.NoneType and value is not None:
        raise ValueError(f"must be empty, got {value!r}")
    if origin is dict and not isinstance(value, dict):
        raise ValueError(f"must be a mapping, got {value!r}")
    return value


def _convert_union(value: Any, alternatives: tuple[Any, ...]) -> Any:
    if value is None and types.NoneType in alternatives:
        return None
    # the alternative that the value already is comes before those it could be turned into: "1" stays a string
    kinds = sorted(alternatives, key=lambda kind: _origin(kind) is not type(value))
    problems = []
    for kind in kinds:
        if kind is not types.NoneType:
            try:
                return convert(value, kind)
            except ValueError as error:
                problems.append(str(error))
    raise ValueError(problems[0] if problems else f"cannot be {value!r}")


def _origin(annotation: Any) -> Any:
    return annotation if get_origin(annotation) is None else get_origin(annotation)


def _choose(value: Any, choices: list[Any]) -> Any:
    words = {str(getattr(choice, "value", choice)): choice for choice in choices}
    if isinstance(value, bool):  # YAML 1.1 reads a bare `no` as false
        for word in _FALSE if value is False else _TRUE:
            if word in words:
                return words[word]
    if str(value) in words:
        return words[str(value)]
    near = difflib.get_close_matches(str(value), words, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise ValueError(f"must be one of {', '.join(words)}, got {value!r}{hint}")


def _to_bool(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    if str(value).lower() in _TRUE + _FALSE:
        return str(value).lower() in _TRUE
    raise ValueError(f"must be true or false, got {value!r}")


def _to_number(value: Any) -> float:
    if value is None or isinstance(value, (bool, list, dict)):
        raise ValueError(f"must be a number, got {value!r}")
    try:
        return float(value)  # YAML 1.1 reads 2e-5 as a string
    except ValueError:
        raise ValueError(f"must be a number, got {value!r}") from None


def _to_int(value: Any) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    try:
        number = _to_number(value)
        if number == int(number):
            return int(number)
    except (ValueError, OverflowError):
        pass
    raise ValueError(f"must be a whole number, got {value!r}")


def _to_str(value: Any) -> str:
    if value is None or isinstance(value, (list, dict)):
        raise ValueError(f"must be a text, got {value!r}")
    return str(value).lower() if isinstance(value, bool) else str(value)


_SCALARS: dict[Any, Callable[[Any], Any]] = {bool: _to_bool, int: _to_int, float: _to_number, str: _to_str}
