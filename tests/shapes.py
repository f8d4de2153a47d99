"""Checks every tensor that a function of the package takes or returns against its annotation.

`--jaxtyping-packages=eap,shapes.tensors` (pyproject.toml) wraps functions and dataclasses of the
package; axes of one name must have one size within a call. Only annotations that name axes are
checked: the other types are mypy's, and many tests give a wrong one to see it refused in words.
"""

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any, get_args

import jaxtyping
from beartype import beartype


def names_axes(hint: Any) -> bool:
    """Whether an annotation has a tensor with named axes anywhere inside."""
    if isinstance(hint, type) and issubclass(hint, jaxtyping.AbstractArray):
        return True
    return any(names_axes(part) for part in get_args(hint))


def has_axes(thing: Any) -> bool:
    """Whether a function, method, property or dataclass has an annotation that names axes."""
    function = getattr(thing, "fget", None) or getattr(thing, "__func__", thing)
    return any(names_axes(hint) for hint in inspect.get_annotations(function).values())


def tensors(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, refusing tensors that are not as its annotations say."""
    function.__annotations__ = {
        name: hint for name, hint in function.__annotations__.items() if names_axes(hint)
    }
    return beartype(function)


def leave_the_rest(wrap: Callable[..., Any] = jaxtyping.jaxtyped) -> None:
    """Makes jaxtyping leave alone what names no axes: nine calls in ten, each bound for nothing."""

    def jaxtyped(thing: Any = None, *, typechecker: Any) -> Any:
        if thing is None:
            return partial(jaxtyped, typechecker=typechecker)
        return wrap(thing, typechecker=typechecker) if has_axes(thing) else thing

    jaxtyping.jaxtyped = jaxtyped
