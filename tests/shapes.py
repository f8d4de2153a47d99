"""Checks every tensor that a function of the package takes or returns against its annotation.

`--jaxtyping-packages=eap,shapes.tensors` (pyproject.toml) decorates functions and dataclasses of
the package; axes of one name must have one size within a call. Only annotations that name axes are
checked: the other types are mypy's, and many tests give a wrong one to see it refused in words.
The checks would be a quarter of the time of all tests: after its first calls in a process, a
function is checked once in a while.
"""

import dataclasses
import functools
import inspect
import itertools
from collections.abc import Callable
from typing import Any, get_args

import jaxtyping
from beartype import beartype

with_new_axes = jaxtyping.jaxtyped  # as it was before the last line of this module

FIRST_CALLS, THEN_EVERY = 100, 50

is_on = True
"""Whether shapes are checked; a test of what is refused turns it off (see conftest)."""


def names_axes(hint: Any) -> bool:
    """Whether an annotation has a tensor with named axes anywhere inside."""
    if isinstance(hint, type) and issubclass(hint, jaxtyping.AbstractArray):
        return True
    return any(names_axes(part) for part in get_args(hint))


def tensors(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, refusing tensors that are not as its annotations say."""
    hints = {k: v for k, v in inspect.get_annotations(function).items() if names_axes(v)}
    # A function inside another one is made, and would be compiled, at every call.
    if not hints or "<locals>" in function.__qualname__:
        return function
    # All annotations stay on the function: the package reads them (`eap.runtime.kinds`).
    every, function.__annotations__ = function.__annotations__, hints
    typed = beartype(function)
    function.__annotations__ = every
    calls = itertools.count()

    @functools.wraps(function)
    def checked(*args: Any, **kwargs: Any) -> Any:
        call = next(calls)
        if not is_on or (call >= FIRST_CALLS and call % THEN_EVERY):
            return function(*args, **kwargs)
        with with_new_axes("context"):
            return typed(*args, **kwargs)

    return checked


def check_tensors(thing: Any = None, *, typechecker: Any) -> Any:
    """In place of `jaxtyping.jaxtyped`, which would check each call twice, and every function."""
    if thing is None:
        return functools.partial(check_tensors, typechecker=typechecker)
    if isinstance(thing, (classmethod, staticmethod)):
        return type(thing)(tensors(thing.__func__))
    if isinstance(thing, property):
        return property(tensors(thing.fget), thing.fset, thing.fdel)
    if inspect.isfunction(thing):
        return tensors(thing)
    if dataclasses.is_dataclass(thing):
        thing.__init__ = tensors(thing.__init__)
    return thing


jaxtyping.jaxtyped = check_tensors
