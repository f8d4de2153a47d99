"""Calls that a function does not understand: one line that names the right argument.

People who come from another library, or from another verb, type the name that they know. Python's
own message names a function inside the package, and never the argument that was meant.
"""

import inspect
from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from functools import cache, wraps
from typing import Any, ParamSpec, TypeVar

from eap.errors import UserError, quoted
from eap.runtime.resources import ResourceOptions

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")

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
"""Names that other libraries, or other verbs, use, and what the same thing is called here."""

MADE_BY = {
    "Dataset": "eap.load_dataset makes one",
    "Graph": "eap.attribute makes one",
    "Model": "eap.load_model makes one",
}
"""What makes the objects that verbs take, by the name of their class."""

KINDS = {
    "circuit": "Graph",
    "circuits": "Graph",
    "dataset": "Dataset",
    "first": "Graph",
    "graph": "Graph",
    "measured_on": "Dataset",
    "model": "Model",
}
"""The class of an argument, by the argument's name: people exchange them."""


@cache
def _signature(function: Callable[..., Any]) -> tuple[inspect.Signature, tuple[str, ...], bool]:
    """The signature, all keywords, and whether keywords go on to another function unseen."""
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
    """Check that a call has the arguments of the function, before anything is computed.

    Args:
        function: function that is called.
        args: arguments by position.
        kwargs: arguments by keyword.

    Raises:
        UserError: an argument that the function does not have, one that is missing, too many by
            position, or a model, a data set or a graph in each other's place.
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
    if len(args) > len(positional):
        raise UserError(
            f"{name} takes {len(positional)} arguments by position, {', '.join(positional)}, and "
            f"was given {len(args)}; give the others by name"
        )
    try:
        given = signature.bind(*args, **kwargs).arguments
    except TypeError as error:
        raise UserError(f"{name}: {error}") from None
    for key, value in given.items():
        kind = type(value).__name__
        if kind in MADE_BY and kind != KINDS.get(key, kind):
            raise UserError(
                f"{name} takes a {KINDS[key]} as {key!r}, not a {kind}; {MADE_BY[KINDS[key]]}"
            )


def checked(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """A function whose calls are checked first (verbs are: see `eap.model.verbs`).

    Args:
        function: function to wrap.
    """

    @wraps(function)
    def call(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        check_call(function, args, kwargs)
        return function(*args, **kwargs)

    return call


def meant(keyword: str, names: Iterable[str]) -> str:
    """The part of a message that names the argument which a person probably meant.

    Args:
        keyword: name that was given.
        names: names that the function has.
    """
    names = list(names)
    known = [name for name in MEANT.get(keyword, ()) if name in names]
    found = known or get_close_matches(keyword, names, n=1, cutoff=0.6)
    if found:
        return f"the argument for it is {found[0]!r}"
    return f"its arguments are {', '.join(names)}"
