# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
Checks and converts values by the type annotation of a dataclass field.

Values come from a YAML file, where numbers may be text, or from Python, where a dataclass accepts anything.
"""

import contextlib
import difflib
import functools
import json
import math
import os
import types
from collections.abc import Callable, Iterable, Mapping
from enum import Enum
from numbers import Integral, Real
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints


_TRUE = ("yes", "true", "t", "y", "1")
_FALSE = ("no", "false", "f", "n", "0")


def convert(value: Any, annotation: Any, choices: Iterable[Any] | None = None, *, written: bool = True) -> Any:
    """
    Convert a value to the type of a field.

    Args:
        value (`Any`):
            The value from a YAML file or from Python.
        annotation (`Any`):
            Type of the field.
        choices (`Iterable[Any]`, *optional*):
            The only values that the field may have.
        written (`bool`, *optional*, defaults to `True`):
            Whether the value was written in a file, where numbers may be text (YAML 1.1 reads 2e-5 as text). From
            Python, text stays text.

    Raises:
        `ValueError`: The value does not fit; the message continues "`key` ...".
    """
    if choices is not None and value is not None:
        several = isinstance(value, list)
        return [_choose(item, list(choices)) for item in value] if several else _choose(value, list(choices))
    if annotation is Any:
        return value
    origin, arguments = _origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        return _convert_union(value, arguments, written)
    if origin is Literal:
        return _choose(value, list(arguments))
    if origin is list:
        items = value if isinstance(value, list | tuple) else [value]
        return [convert(item, arguments[0] if arguments else Any, written=written) for item in items]
    converter = _SCALARS.get(origin)
    if converter is not None:
        return converter(value, written)
    if isinstance(origin, type) and issubclass(origin, Enum):
        return value if isinstance(value, origin) else _choose(value, [member.value for member in origin])
    if origin is types.NoneType and value is not None:
        raise ValueError(f"must be empty, got {value!r}")
    if origin is dict and not isinstance(value, dict):
        raise ValueError(f"must be a mapping, got {value!r}")
    return value


def true_false_or_auto(name: str, value: Any) -> Any:
    """
    Convert a setting that is true, false, `"auto"` or not set (`None`), as a value or as text of a command line.

    Raises:
        `ValueError`: It is another; the message names the setting.
    """
    if value is None or value == "auto":
        return value
    try:
        return convert(value, bool)
    except ValueError:
        raise ValueError(f"`{name}` must be true, false or 'auto', got {value!r}.") from None


def check_value(name: str, value: Any, annotation: Any) -> Any:
    """
    Convert a setting's value from Python to its type.

    Raises:
        `ValueError`: The value is of another type; the message names the setting.
    """
    try:
        return convert(value, annotation, written=False)
    except ValueError as error:
        raise ValueError(f"`{name}` {error}.") from None


def check_fields(instance: Any, names: Iterable[str]) -> None:
    """
    Check fields of a dataclass against their annotations, and convert them to these (`2` to `2.0`).

    Args:
        instance (`Any`):
            The dataclass; may be frozen.
        names (`Iterable[str]`):
            The fields.

    Raises:
        `ValueError`: A field has a value of another type; the message names it.
    """
    cls: Any = type(instance)
    annotations = _annotations(cls)
    for name in names:
        value = getattr(instance, name)
        if value is cls.__dataclass_fields__[name].default:  # `x: int = None` is common
            continue
        found = check_value(name, value, annotations.get(name, Any))
        if found is not value:
            object.__setattr__(instance, name, found)


def number_fields(cls: type) -> list[str]:
    """The fields of a dataclass that hold a number or a boolean, or `None`."""
    plain = {int, float, bool, types.NoneType}
    return [name for name, kind in _annotations(cls).items() if {*(get_args(kind) or (kind,))} <= plain]


@functools.cache
def _annotations(cls: type) -> dict[str, Any]:
    try:
        return get_type_hints(cls)
    except NameError:  # a plug-in's annotation has a name that only type checkers import
        return {}


def check_at_least(name: str, value: Any, least: float) -> None:
    """Raise a `ValueError` that names the setting unless it is a finite number of at least `least`."""
    if not isinstance(value, int | float) or not value >= least:  # `not >=` also rejects NaN
        raise ValueError(f"`{name}` must be at least {least}, got {value!r}.")
    if value == math.inf:
        raise ValueError(f"`{name}` must be finite, got {value!r}.")


def as_mapping(name: str, value: Any) -> dict[str, Any] | None:
    """
    A setting that is a mapping, or JSON text of one, as a command line passes it.

    Args:
        name (`str`): Name of the setting.
        value (`dict[str, Any]` or `str`, *optional*): Its value.

    Raises:
        `ValueError`: It is neither; the message names the setting.
    """
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except json.JSONDecodeError as error:
            raise ValueError(f"`{name}` must be a mapping in JSON, got {value!r}: {error}.") from None
    if value is not None and not isinstance(value, dict):
        raise ValueError(f"`{name}` must be a mapping, got {value!r}.")
    return value


def _convert_union(value: Any, alternatives: tuple[Any, ...], written: bool) -> Any:
    if value is None and types.NoneType in alternatives:
        return None
    # The type that the value already has comes before those that it could be converted to: "1" stays a string.
    kinds = sorted(alternatives, key=lambda kind: _distance(value, _origin(kind)))
    problems = []
    for kind in kinds:
        if kind is not types.NoneType:
            try:
                return convert(value, kind, written=written)
            except ValueError as error:
                problems.append(str(error))
    raise ValueError(problems[0] if problems else f"cannot be {value!r}")


def _distance(value: Any, kind: Any) -> int:
    """0 if the value has exactly this type, 1 if it has a subclass of it, 2 otherwise."""
    if type(value) is kind:
        return 0
    return 1 if isinstance(kind, type) and isinstance(value, kind) else 2


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


def _to_bool(value: Any, written: bool) -> bool:
    if isinstance(value, bool):
        return value
    if (written or not isinstance(value, str)) and str(value).lower() in _TRUE + _FALSE:
        return str(value).lower() in _TRUE
    raise ValueError(f"must be true or false, got {value!r}")


def _to_number(value: Any, written: bool) -> float:
    number = math.nan
    if not isinstance(value, bool) and isinstance(value, (Real, str) if written else Real):
        with contextlib.suppress(ValueError):
            number = float(value)
    if math.isnan(number):  # NaN compares false with everything, and would pass range checks
        raise ValueError(f"must be a number, got {value!r}")
    return number


def _to_int(value: Any, written: bool) -> int:
    if not isinstance(value, bool) and isinstance(value, Integral):
        return int(value)
    try:
        number = _to_number(value, written)
        if number == int(number):
            return int(number)
    except (ValueError, OverflowError):
        pass
    raise ValueError(f"must be a whole number, got {value!r}")


def _to_str(value: Any, written: bool) -> str:
    if isinstance(value, str | os.PathLike):
        return os.fspath(value)
    if not written or value is None or isinstance(value, (list, dict)):
        raise ValueError(f"must be text, got {value!r}")
    return str(value).lower() if isinstance(value, bool) else str(value)


_SCALARS: dict[Any, Callable[[Any, bool], Any]] = {bool: _to_bool, int: _to_int, float: _to_number, str: _to_str}


def require(condition: bool, message: str) -> None:
    """Raise a `ValueError` with this message if the condition is false."""
    if not condition:
        raise ValueError(message)


def unknown_settings(
    names: Iterable[str], refused: Mapping[str, str], show: Callable[[str], str], unknown: Callable[[str], str]
) -> list[str]:
    """
    What to say about settings that do not exist: one line for each, or for all that are refused for the same reason.

    Args:
        names (`Iterable[str]`): The settings.
        refused (`Mapping[str, str]`): Reasons, or alternatives, by the names that they are for.
        show (`Callable`): How a name is written.
        unknown (`Callable`): The line for a name without a reason.
    """
    lines: list[str] = []
    by_reason: dict[str, list[str]] = {}
    for name in names:
        if name in refused:
            by_reason.setdefault(refused[name], []).append(show(name))
        else:
            lines.append(unknown(name))
    return lines + [f"{', '.join(shown)}: {reason}" for reason, shown in by_reason.items()]


def did_you_mean(name: str, known: Iterable[str], show: Callable[[str], str]) -> str:
    """A question that names the nearest of the names that exist; empty if none is near."""
    near = difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.6)
    return f"; did you mean {show(near[0])}?" if near else ""


class SettingErrors(ValueError):
    """
    Everything that is wrong with some settings, so that one run shows it all.

    Args:
        problems (`Iterable[str]`): What is wrong, a line each.
        title (`str`, *optional*): The line above several of them.
        hint (`str`, *optional*): A line below.
        always_list (`bool`, *optional*): Whether a single problem has the title too.
    """

    def __init__(self, problems: Iterable[str], title: str = "", hint: str = "", always_list: bool = False) -> None:
        self.problems = list(problems)
        lines = self.problems
        if always_list or len(lines) > 1:
            lines = [title or f"{len(lines)} settings are wrong:", *(f"  {line}" for line in lines)]
        super().__init__("\n".join([*lines, *filter(None, [hint])]))
