"""Checks that the arguments of a public function have the types of its annotations.

A value of another type (a name instead of a model, a generator instead of a list, None, a string
for a switch) is refused with one line before anything is computed. Numbers are left to
`eap.runtime.ranges`, which checks their ranges.
"""

import inspect
import os
import types
import typing
from collections import abc
from collections.abc import Callable, Mapping
from functools import cache, wraps
from numbers import Number
from pathlib import Path
from typing import Any, Literal, ParamSpec, TypeVar, Union, get_args, get_origin

import numpy as np

from eap.runtime.arguments import check_call
from eap.runtime.errors import UserError, quoted

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")

MADE_BY = {
    "Dataset": "eap.load_dataset makes one",
    "Graph": "eap.attribute makes one",
    "Model": "eap.load_model makes one",
}
SWITCHES = (bool, np.bool_)
NAMES = {
    str: "a string",
    bool: "True or False",
    type(None): "None",
    Path: "a path",
    os.PathLike: "a path",
}


def checked(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """Decorator that checks the names and types of the arguments of every call.

    Example:
        >>> @checked
        ... def greet(name: str) -> str:
        ...     return f"hello {name}"
    """

    @wraps(function)
    def call(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        check_call(function, args, kwargs)
        check_kinds(function, args, kwargs)
        return function(*args, **kwargs)

    return call


def check_kinds(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> None:
    """Check the types of the arguments of one call.

    Args:
        function: function that is called.
        args: arguments by position.
        kwargs: arguments by keyword.

    Raises:
        UserError: an argument of another type.
    """
    names, kinds = _kinds_of(function)
    for name, value in (*zip(names, args, strict=False), *kwargs.items()):
        kind = kinds.get(name, Any)
        if not is_of(value, kind):
            raise UserError(f"{name} is {shown(value)}; it must be {described(kind)}")


@cache
def _kinds_of(function: Callable[..., Any]) -> tuple[tuple[str, ...], dict[str, Any]]:
    """Names of the arguments by position, and the annotation of every argument."""
    hints = typing.get_type_hints(function)
    kinds: dict[str, Any] = {}
    for name, parameter in inspect.signature(function).parameters.items():
        kind = hints.get(name, Any)
        if parameter.kind is parameter.VAR_KEYWORD:
            unpacked = get_args(kind)  # Unpack[ResourceOptions]
            kinds |= typing.get_type_hints(unpacked[0]) if unpacked else {}
        elif parameter.kind is not parameter.VAR_POSITIONAL:
            kinds[name] = kind
    return tuple(kinds), kinds


def is_of(value: Any, kind: Any) -> bool:
    """Whether a value has an annotated type; True for numbers and for what cannot be checked."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        numbers = [part for part in parts if part in (int, float)]
        others = [part for part in parts if part not in (int, float, type(None))]
        if others and isinstance(value, Number) and not isinstance(value, SWITCHES):
            return bool(numbers)
        return any(is_of(value, part) for part in parts if not others or part not in numbers)
    if origin is Literal:
        return isinstance(value, str) and value in parts
    if origin in (abc.Callable, Callable):
        return callable(value)
    if origin is abc.Mapping or origin is dict:
        return isinstance(value, Mapping)
    if origin in (abc.Sequence, list):
        return _is_list(value) and (not parts or all(is_of(one, parts[0]) for one in value))
    if origin is tuple:
        return _is_list(value)
    return not inspect.isclass(kind) or _is_instance(value, kind)


def _is_list(value: Any) -> bool:
    """Whether a value has a length and an order, and is not text, a mapping or a generator."""
    if isinstance(value, str | bytes | Mapping) or getattr(value, "ndim", 1) == 0:
        return False
    return hasattr(value, "__len__") and hasattr(value, "__getitem__")


def _is_instance(value: Any, kind: type) -> bool:
    if kind is bool:
        return isinstance(value, SWITCHES)
    if kind in (str, type(None)):
        return isinstance(value, kind)
    if issubclass(kind, Path) or kind is os.PathLike:
        return isinstance(value, os.PathLike)
    array = getattr(kind, "array_type", None)  # annotation of jaxtyping
    if inspect.isclass(array):
        return isinstance(value, array)
    if getattr(kind, "_is_protocol", False) and not getattr(kind, "_is_runtime_protocol", False):
        return True
    return isinstance(value, kind) if kind.__module__.partition(".")[0] == "eap" else True


def described(kind: Any) -> str:
    """Annotated type in words, for a message."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        listed = {part for part in parts if get_origin(part) in (abc.Sequence, list)}
        ordered = sorted(parts, key=lambda part: part in listed)  # lists last: "a list, each .."
        words = list(dict.fromkeys(described(part) for part in ordered))
        return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"
    if origin is Literal:
        return " or ".join(map(repr, parts))
    if origin in (abc.Callable, Callable):
        return "a function"
    if origin is abc.Mapping or origin is dict:
        return "a dictionary"
    if origin in (abc.Sequence, list, tuple):
        if not parts or parts[0] is Any:
            return "a list"
        # "a list of strings", or "a list whose items are a string or a Metric".
        kinds = get_args(parts[0]) if get_origin(parts[0]) in (Union, types.UnionType) else ()
        one = described(parts[0])
        return f"a list whose items are {one}" if kinds else f"a list of {_plural(one)}"
    if kind in NAMES:
        return NAMES[kind]
    if kind in (int, float):
        return "a whole number" if kind is int else "a number"
    array = getattr(kind, "array_type", None)
    name = getattr(array or kind, "__name__", str(kind))
    article = "an" if name[:1] in "AEIOU" else "a"
    return f"{article} {name}" + (f" ({MADE_BY[name]})" if name in MADE_BY else "")


def _plural(kind: str) -> str:
    """Plural of a described type: `Graphs` for `a Graph (eap.attribute makes one)`."""
    return f"{kind.partition(' (')[0].partition(' ')[2]}s"


def shown(value: Any) -> str:
    """Value for a message: short values as they are, others by their type."""
    if value is None or isinstance(value, SWITCHES):
        return str(value)
    if isinstance(value, str | bytes | int | float | complex):
        return quoted(value, 60) if isinstance(value, str | bytes) else str(value)[:60]
    if inspect.isclass(value):
        return f"the class {value.__name__}"
    inside = ""
    if isinstance(value, list | tuple) and value:
        inside = f" of {', '.join(sorted({type(one).__name__ for one in value[:20]}))[:60]}"
    return f"a {type(value).__name__}{inside}"
