"""The table of methods: the points at which each takes gradients, and its backward rules.

The scores of all signed methods follow one convention: a score is the change of the metric when the
edge is ablated. To add a method of your own, give a `Method` to `eap.attribute`. `eap.attribution`
computes scores from points and rules. This module loads no model library, so command lines can list
the names quickly.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Any, ClassVar, NamedTuple

import numpy as np

from eap.model.rules import EXACT, BackwardRules
from eap.runtime.errors import UserError
from eap.runtime.ranges import real, whole


class Point(NamedTuple):
    """A point on the path from ablated input (position 0) to clean input (1), with its weight."""

    position: float
    weight: float


RULES: dict[str, Callable[[int], list[Point]]] = {
    # The rule of the paper: k/m for k = 1..m.
    "paper": lambda steps: [Point(k / steps, 1 / steps) for k in range(1, steps + 1)],
    # The rule of the EAP-IG library for edges: k/m for k = 0..m-1.
    "library": lambda steps: [Point(k / steps, 1 / steps) for k in range(steps)],
    "midpoint": lambda steps: [Point((k - 0.5) / steps, 1 / steps) for k in range(1, steps + 1)],
    "gauss-legendre": lambda steps: [
        Point((float(node) + 1) / 2, float(weight) / 2)
        for node, weight in zip(*np.polynomial.legendre.leggauss(steps), strict=True)
    ],
}
"""Integration rules over the path from the ablated (0) to the clean input (1), by name."""

Points = Callable[[str, int], list[Point]]


def at_clean(rule: str, steps: int) -> list[Point]:
    """The clean input as the only point."""
    return [Point(1.0, 1.0)]


def at_both_ends(rule: str, steps: int) -> list[Point]:
    """The ablated and the clean input, with equal weights."""
    return [Point(0.0, 0.5), Point(1.0, 0.5)]


def along_the_path(rule: str, steps: int) -> list[Point]:
    """The points of an integration rule.

    Raises:
        UserError: an unknown rule, or a number of steps out of range.
    """
    if rule not in RULES:
        raise UserError(f"unknown rule {rule!r}; known are {', '.join(RULES)}")
    return RULES[rule](whole("steps", steps))


def from_the_ablated_end(rule: str, steps: int) -> list[Point]:
    """The points k/m for k = 0..m-1, whatever the rule."""
    return along_the_path("library", steps)


@dataclass(frozen=True)
class Auto:
    """Automatic number of integration points: doubled until the scores are complete.

    Give it to `eap.attribute` as `steps`.

    Attributes:
        tolerance: largest relative difference between the sum of the scores of the edges out of the
            input and the difference of the metric.

    Example:
        >>> graph = eap.attribute(model, dataset, steps=eap.Auto(tolerance=0.05))
    """

    tolerance: float = 0.05

    TRIED: ClassVar = (5, 10, 20, 40, 80, 160, 320)
    """Numbers of points to try, in order."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "tolerance", real("tolerance", self.tolerance))


@dataclass(frozen=True)
class Method:
    """Method of scoring edges: points of the path, backward rules, and a scorer.

    Attributes:
        name: name used by scripts, files and legends.
        source: publication or authors.
        points: function `(rule, steps) -> points` that gives the points at which gradients are
            taken.
        rules: backward rules.
        scorer: name of a scorer in `eap.attribution.SCORERS`, or a function with the same
            signature.
        passes: cost in forward and backward passes.
        integrates: whether the points depend on `steps`.
        uses_rule: whether the points depend on the integration rule.
        uses_metric: whether the method uses a metric.
        needs_pair: whether the method needs a corrupted prompt for every clean one.
        linear: whether a score is linear in the output of the sender, so that the score of a node
            is the sum of the scores of its edges.
        signed: whether scores have the common sign; if not, they are importances, where high means
            helpful.

    Example:
        >>> from eap.methods import Point
        >>> halfway = eap.Method("halfway", "ours", points=lambda rule, steps: [Point(0.5, 1.0)])
        >>> graph = eap.attribute(model, dataset, method=halfway)
    """

    name: str
    source: str
    points: Points = at_clean
    rules: BackwardRules = EXACT
    scorer: str | Callable[..., Any] = "gradients"
    passes: str = "1"
    integrates: bool = False
    uses_rule: bool = True
    uses_metric: bool = True
    needs_pair: bool = False
    linear: bool = True
    signed: bool = True


_RELP = BackwardRules(frozen_norms=True, frozen_activations=True, gate_product=0.5)
_ATTNLRP = replace(_RELP, query_key=0.5, pattern_value=0.5)
# The gradients of q and k pass through the pattern, which has already halved them.
_GIM = BackwardRules(
    frozen_norms=True, gate_product=0.5, query_key=0.5, pattern_value=0.5, softmax_temperature=2.0
)

METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method("EAP", "Syed, Rager and Conmy 2023 (arXiv 2310.10348)"),
        Method(
            "EAP-IG",
            "Hanna, Pezzelle and Belinkov 2024 (arXiv 2403.17806), equation 2",
            points=along_the_path,
            passes="m",
            integrates=True,
        ),
        Method(
            "clean-corrupted",
            "the mean of the gradients at both ends (EAP-IG library)",
            points=at_both_ends,
            passes="2",
            needs_pair=True,
        ),
        Method(
            "EAP-IG-activations",
            "Marks et al. 2024 (arXiv 2403.19647); ours for edges (the EAP-IG library's differs)",
            points=along_the_path,
            scorer="activations",
            passes="(2 n_layers + 1) m",
            integrates=True,
        ),
        Method(
            "CEAP",
            "arXiv 2606.16920",
            points=from_the_ablated_end,
            scorer="increments",
            passes="m",
            integrates=True,
            uses_rule=False,
            needs_pair=True,
        ),
        Method("RelP", "arXiv 2508.21258", rules=_RELP),
        Method("AttnLRP", "Achtibat et al. 2024 (arXiv 2402.05602)", rules=_ATTNLRP),
        Method("GIM", "arXiv 2505.17630", rules=_GIM),
        Method(
            "AtP*-QK",
            "Kramar et al. 2024 (arXiv 2403.00745), QK fix",
            scorer="patterns",
            passes="1, and the attention patterns of every sender and head",
            linear=False,
        ),
        Method(
            "AtP*-GradDrop",
            "Kramar et al. 2024 (arXiv 2403.00745), GradDrop",
            scorer="dropped layers",
            passes="n_layers",
            linear=False,
            signed=False,
        ),
        Method(
            "IFR",
            "Ferrando and Voita 2024 (arXiv 2403.00824)",
            scorer="flow",
            passes="1 forward",
            uses_metric=False,
            linear=False,
            signed=False,
        ),
        Method(
            "exact", "activation patching", scorer="exact", passes="see exact values", linear=False
        ),
    )
}
"""Every method, by name."""

FOREIGN_NAMES = {"EAP-IG-inputs": "EAP-IG", "information-flow-routes": "IFR"}
"""Names of methods in the EAP-IG library and MIB that differ from those used here."""


def get_method(method: str | Method) -> Method:
    """Look up a method by name; a `Method` is returned unchanged.

    Raises:
        UserError: an unknown name; the message lists the known names.
    """
    if isinstance(method, Method):
        return method
    if method not in METHODS:
        likely = FOREIGN_NAMES.get(method, "") or _like(method)
        hint = f"did you mean {likely!r}? " if likely else ""
        raise UserError(f"unknown method {method!r}; {hint}known are {', '.join(METHODS)}")
    return METHODS[method]


def _like(name: str) -> str:
    """The method with the most similar spelling, or an empty string."""
    spelled = {known.lower(): known for known in METHODS}
    nearest = get_close_matches(name.lower(), spelled, n=1)
    return spelled[nearest[0]] if nearest else ""
