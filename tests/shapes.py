"""Checks every tensor that a function of the package takes or returns against its annotation.

`--jaxtyping-packages=eap,shapes.tensors` (pyproject.toml) wraps each function of the package; axes
of one name must have one size within a call. Only annotations that name axes are checked: the other
types are mypy's, and many tests give a wrong one to see it refused in words.
"""

from collections.abc import Callable
from typing import Any, get_args

from beartype import beartype
from jaxtyping import AbstractArray


def names_axes(hint: Any) -> bool:
    """Whether an annotation has a tensor with named axes anywhere inside."""
    if isinstance(hint, type) and issubclass(hint, AbstractArray):
        return True
    return any(names_axes(part) for part in get_args(hint))


def tensors(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, refusing tensors that are not as its annotations say."""
    function.__annotations__ = {
        name: hint for name, hint in function.__annotations__.items() if names_axes(hint)
    }
    return beartype(function)
