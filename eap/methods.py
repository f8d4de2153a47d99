"""The table of methods: at which inputs each takes gradients, and by which backward rules.

Scores of all methods have one sign: the change of the metric when the edge is ablated. A method of
your own is a `Method` given to `eap.attribute`; how scores are computed from points and rules is
`eap.attribution`. This module loads no model library, so that command lines can list the names.
"""

from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, ClassVar, NamedTuple

import numpy as np

from eap.model.rules import EXACT, BackwardRules
from eap.runtime.errors import UserError
from eap.runtime.ranges import real, whole


class Point(NamedTuple):
    """A point of the path from the ablated (position 0) to the clean input (1), and its weight."""

    position: float
    weight: float


RULES: dict[str, Callable[[int], list[Point]]] = {
    # The paper's: k/m for k = 1..m.
    "paper": lambda steps: [Point(k / steps, 1 / steps) for k in range(1, steps + 1)],
    # The EAP-IG library's for edges: k/m for k = 0..m-1.
    "library": lambda steps: [Point(k / steps, 1 / steps) for k in range(steps)],
    "midpoint": lambda steps: [Point((k - 0.5) / steps, 1 / steps) for k in range(1, steps + 1)],
    "gauss-legendre": lambda steps: [
        Point((float(node) + 1) / 2, float(weight) / 2)
        for node, weight in zip(*np.polynomial.legendre.leggauss(steps), strict=True)
    ],
}
"""Rules of integration over the path from the ablated (0) to the clean input (1), by name."""

Points = Callable[[str, int], list[Point]]


def at_clean(rule: str, steps: int) -> list[Point]:
    """The clean input alone."""
    return [Point(1.0, 1.0)]


def at_both_ends(rule: str, steps: int) -> list[Point]:
    """The ablated and the clean input."""
    return [Point(0.0, 0.5), Point(1.0, 0.5)]


def along_the_path(rule: str, steps: int) -> list[Point]:
    """The points of a rule of integration.

    Raises:
        UserError: an unknown rule, or a number of steps out of range.
    """
    if rule not in RULES:
        raise UserError(f"unknown rule {rule!r}; known are {', '.join(RULES)}")
    return RULES[rule](whole("steps", steps))


def from_the_ablated_end(rule: str, steps: int) -> list[Point]:
    """k/m for k = 0..m-1, whatever the rule."""
    return along_the_path("library", steps)


@dataclass(frozen=True)
class Auto:
    """Number of integration points, doubled until scores are complete (`steps` of `attribute`).

    Attributes:
        tolerance: largest relative distance between the summed scores of the edges out of the input
            and the metric's difference.

    Example:
        >>> graph = eap.attribute(model, dataset, steps=eap.Auto(tolerance=0.05))
    """

    tolerance: float = 0.05

    TRIED: ClassVar = (5, 10, 20, 40, 80, 160, 320)
    """Numbers of points, in the order in which they are tried."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "tolerance", real("tolerance", self.tolerance))


@dataclass(frozen=True)
class Method:
    """Method of scoring edges: points of the path, backward rules, or a scorer.

    Attributes:
        name: name as scripts, files and legends have it.
        source: publication or authors.
        points: `(rule, steps) -> points` at which gradients are taken.
        rules: backward rules.
        scorer: rule that makes scores: a name of `eap.attribution.SCORERS`, or a function like
            those.
        passes: cost, in forward and backward passes.
        integrates: whether the points depend on `steps`.
        uses_rule: whether the points depend on the rule of integration.
        uses_metric: whether the method asks for a metric.
        needs_pair: whether the method needs a corrupted prompt for every clean one.
        linear: whether a score is linear in what the sender sends, so a node's score is the sum of
            its edges' scores.
        signed: whether scores have the common sign; otherwise they are importances: high is
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
_ATTNLRP = BackwardRules(
    frozen_norms=True,
    frozen_activations=True,
    gate_product=0.5,
    query_key=0.5,
    pattern_value=0.5,
)
# q and k are behind the pattern, which is halved once before they are.
_GIM = BackwardRules(
    frozen_norms=True,
    gate_product=0.5,
    query_key=0.5,
    pattern_value=0.5,
    softmax_temperature=2.0,
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
"""What the EAP-IG library and MIB call methods that have another name here."""


def get_method(method: str | Method) -> Method:
    """A method by name (a `Method` is returned as it is); a `UserError` lists the known names."""
    if isinstance(method, Method):
        return method
    if method not in METHODS:
        likely = FOREIGN_NAMES.get(method, "") or _like(method)
        hint = f"did you mean {likely!r}? " if likely else ""
        raise UserError(f"unknown method {method!r}; {hint}known are {', '.join(METHODS)}")
    return METHODS[method]


def _like(name: str) -> str:
    """The method whose name is spelled most like this one, or nothing."""
    spelled = {known.lower(): known for known in METHODS}
    found = get_close_matches(name.lower(), spelled, n=1)
    return spelled[found[0]] if found else ""
