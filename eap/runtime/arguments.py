"""Checks of the arguments of calls, with one line that names the argument that was meant.

Users who come from another library, or from another verb, use the names that they know. Python's
own message would name a function inside the package, and never the right argument.
"""

import inspect
from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from functools import cache
from typing import Any

from eap.runtime.errors import UserError, quoted
from eap.runtime.resources import ResourceOptions

MEANT = {
    "absolute": ("by",),
    "batch": ("batch_size",),
    "confidence": ("alpha",),
    "data_loader": ("dataset",),
    "dataloader": ("dataset",),
    "eval_metric": ("metric", "metrics"),
    "graphs": ("circuits",),
    "ig_steps": ("steps",),
    "intervention": ("ablation",),
    "kv_per_query_head": ("expanded_kv",),
    "level": ("alpha",),
    "limit": ("head",),
    "lr": ("learning_rate",),
    "metric": ("metrics",),
    "metrics": ("metric",),
    "model_name": ("model",),
    "n": ("head",),
    "n_examples": ("head",),
    "n_ig_steps": ("steps",),
    "n_steps": ("steps",),
    "num_examples": ("head",),
    "prune_method": ("selection",),
    "split": ("head", "data"),
}
"""Names of arguments in other libraries, or of other verbs, with the names to use here."""


@cache
def _signature(function: Callable[..., Any]) -> tuple[inspect.Signature, tuple[str, ...], bool]:
    """Signature, names of all keywords, and whether unknown keywords go on to another function."""
    signature = inspect.signature(function)
    names: list[str] = []
    passes_on = False
    for parameter in signature.parameters.values():
        if parameter.kind is parameter.VAR_KEYWORD:
            passes_on = parameter.name != "resources"
            names += [] if passes_on else ResourceOptions.__annotations__
        elif parameter.kind is not parameter.VAR_POSITIONAL:
            names.append(parameter.name)
    return signature, tuple(names), passes_on


def check_call(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> None:
    """Check that a call fits the arguments of the function, before anything is computed.

    Args:
        function: function that is called.
        args: arguments by position.
        kwargs: arguments by keyword.

    Raises:
        UserError: an argument that the function does not have, a missing argument, or too many
            arguments by position.
    """
    signature, names, passes_on = _signature(function)
    name = f"{function.__name__}()"
    if not passes_on:
        for keyword in kwargs:
            if keyword not in names:
                raise UserError(
                    f"{name} has no argument {quoted(keyword)}; {meant(keyword, names)}"
                )
    positional = [
        parameter.name
        for parameter in signature.parameters.values()
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
    ]
    kinds = {parameter.kind for parameter in signature.parameters.values()}
    if len(args) > len(positional) and inspect.Parameter.VAR_POSITIONAL not in kinds:
        raise UserError(
            f"{name} takes {len(positional)} arguments by position, {', '.join(positional)}, and "
            f"was given {len(args)}; give the others by name"
        )
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        raise UserError(f"{name}: {error}") from None


def meant(keyword: str, names: Iterable[str]) -> str:
    """Part of a message that names the argument that the user probably meant.

    Args:
        keyword: name that was given.
        names: names that the function has.
    """
    names = list(names)
    known = [name for name in MEANT.get(keyword, ()) if name in names]
    sure = known or get_close_matches(keyword, names, n=1, cutoff=0.8)
    if sure:
        return f"the argument for it is {sure[0]!r}"
    alike = get_close_matches(keyword, names, n=1, cutoff=0.6)
    perhaps = f"did you mean {alike[0]!r}? " if alike else ""
    return f"{perhaps}its arguments are {', '.join(names)}"
