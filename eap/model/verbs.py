"""Decorator of all verbs, the public functions that take a model."""

import threading
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

from eap.model.model import Model
from eap.runtime.arguments import check_call
from eap.runtime.context import plain_torch
from eap.runtime.kinds import check_kinds

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")

_CALL = threading.local()


def verb(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """Decorator of verbs, which makes results independent of the context of the call.

    A call with a wrong argument, or a value of a wrong type, is refused with one line. The function
    runs outside autocast, inference mode and a default device, and a model whose weights have
    changed since they were read is read again. A verb within a verb skips the last two steps.

    Example:
        >>> @verb
        ... def n_layers(model: Model) -> int:
        ...     return model.config.n_layers
    """

    @wraps(function)
    def call(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        check_call(function, args, kwargs)
        check_kinds(function, args, kwargs)
        if getattr(_CALL, "is_within", False):
            return function(*args, **kwargs)
        _CALL.is_within = True
        try:
            with plain_torch():
                for argument in (*args, *kwargs.values()):
                    if isinstance(argument, Model):
                        argument.refresh()
                return function(*args, **kwargs)
        finally:
            _CALL.is_within = False

    return call
