"""One tiny random model twice: as the package has it and as the oracle has it; the oracle's values.

The oracle's values are made once per process, in float64, and kept: tests in float32 and in float64
compare with the same numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache

import torch
from jaxtyping import Bool, Float
from models.tiny import FAMILIES, GROUPED_FAMILIES, bridge_of, random_examples, tiny_hf
from torch import Tensor

from eap.data.dataset import Dataset, Example
from eap.methods import get_method
from eap.model.loading import Model, from_bridge
from reference import oracle
from reference.split_run import existing_edges, shape_of

RELATIVE = {torch.float32: 1e-5, torch.float64: 1e-9}
"""Largest error, relative to the largest value, that is rounding."""

FORMS = [
    *((family, False) for family in FAMILIES),
    *((family, True) for family in GROUPED_FAMILIES),
]
"""Every family, then those with grouped-query attention once more in the expanded form."""

DTYPES = (torch.float32, torch.float64)

METRICS = ("logit_diff", "prob_diff", "kl", "js")

RAGGED = random_examples([4, 9, 6, 6, 11, 9, 8], [3, 2, 5, 2, 7, 4, None], seed=1)
"""Several lengths and first differences (never the first token), and one pair of equal prompts."""
FROM_THE_FIRST = random_examples([1, 5, 2, 8, 8], [0, 0, 1, 0, 7], seed=2)
"""Prompts that differ from their first token on, one of a single token."""
WITH_BOS = random_examples([5, 7, 7], [0, 3, 6], seed=3, bos=0)
EXAMPLES = (
    *RAGGED[:3], *RAGGED[5:], FROM_THE_FIRST[0], *FROM_THE_FIRST[2:4], WITH_BOS[1]
)  # fmt: skip
"""Examples of every kind: 9, which few batch sizes divide.

Each of the first six tokens, the last token and none is the first that differs; two pairs have one
first difference.
"""


def dataset_of(examples: Sequence[Example]) -> Dataset:
    """A data set of some examples."""
    return Dataset(task="random", examples=tuple(examples))


def precision(family: str, dtype: torch.dtype) -> AbstractContextManager[object]:
    """Where the package runs: in float64, most families need help to compute in float64."""
    return oracle.float64() if dtype == torch.float64 and family != "gpt2" else nullcontext()


@lru_cache(maxsize=64)
def hf_model(family: str):
    """The oracle's, in float64."""
    return tiny_hf(family, dtype=torch.float64)


@lru_cache(maxsize=64)
def load(family: str, dtype: torch.dtype = torch.float32) -> Model:
    """The package's, with the same weights."""
    hf = tiny_hf(family, dtype=dtype)  # not below: its rotary frequencies are float32's
    with precision(family, dtype):
        return from_bridge(bridge_of(hf), name="tiny")


def _metrics(example: Example) -> list[oracle.Metric]:
    return [oracle.metric_of(name, example.correct, example.incorrect) for name in METRICS]


@lru_cache(maxsize=8192)
def _attribution(family: str, example: Example, point: float, expanded: bool) -> Tensor:
    """From one point of the path: a rule's scores are a sum of them, and rules share points."""
    model = hf_model(family)
    with oracle.float64():
        return oracle.attribution_scores(
            model,
            example.clean,
            example.corrupted,
            _metrics(example),
            [point],
            [1.0],
            expanded=expanded,
        ).nan_to_num(0.0)


def oracle_attribution(
    family: str,
    examples: Sequence[Example],
    metric: str,
    points: Sequence[float],
    weights: Sequence[float],
    *,
    expanded: bool = False,
) -> Float[Tensor, "example n_forward n_backward"]:
    """Scores of every example; 0 where there is no edge."""
    which = METRICS.index(metric)
    return torch.stack(
        [
            oracle.add_up(
                weight * _attribution(family, own, point, expanded)[which]
                for point, weight in zip(points, weights, strict=True)
            )
            for own in examples
        ]
    )


@lru_cache(maxsize=1024)
def _exact(family: str, example: Example, expanded: bool) -> Tensor:
    model = hf_model(family)
    with oracle.float64():
        return oracle.exact_edge_values(
            model,
            example.clean,
            example.corrupted,
            _metrics(example),
            expanded=expanded,
        ).nan_to_num(0.0)


def oracle_exact(
    family: str, examples: Sequence[Example], *, expanded: bool = False
) -> Float[Tensor, "metric example n_forward n_backward"]:
    """Exact values of every edge on every example, of all METRICS; 0 where there is no edge."""
    return torch.stack([_exact(family, own, expanded) for own in examples], dim=1)


@lru_cache(maxsize=1024)
def _circuit_runs(
    family: str, example: Example, circuits: bytes, shape: tuple[int, ...], expanded: bool
) -> tuple[Tensor, Tensor]:
    """Logits of the clean model and of every circuit; tests share circuits."""
    model = hf_model(family)
    edges = torch.frombuffer(bytearray(circuits), dtype=torch.bool).view(shape)
    with oracle.float64():
        clean = oracle.last_logits(model, example.clean)
        return clean, oracle.run_with_edges(
            model, example.clean, example.corrupted, edges, expanded=expanded
        )


def oracle_circuits(
    family: str,
    examples: Sequence[Example],
    circuits: Bool[Tensor, "circuit n_forward n_backward"],
    metrics: Sequence[str],
    *,
    expanded: bool = False,
) -> Float[Tensor, "metric circuit example"]:
    """Metrics of circuits on every example."""
    values, edges = [], (circuits.numpy().tobytes(), tuple(circuits.shape))
    with oracle.float64():
        for own in examples:
            clean, runs = _circuit_runs(family, own, *edges, expanded)
            found = [oracle.metric_of(name, own.correct, own.incorrect) for name in metrics]
            values.append(torch.stack([metric(runs, clean) for metric in found]))
    return torch.stack(values, dim=-1)


def edges_of(family: str, *, expanded: bool = False) -> Bool[Tensor, "n_forward n_backward"]:
    """Which edges exist."""
    return existing_edges(shape_of(hf_model(family), expanded=expanded))


def assert_close(
    found: Tensor, expected: Tensor, relative: float, *, at_least: float = 0.0
) -> None:
    """Equal within `relative` of the largest expected value, or of `at_least` if it is larger.

    In float64 a difference of 1e-14 is none.
    """
    assert found.shape == expected.shape
    nothing = 1e-14 if found.dtype == torch.float64 else 0.0
    largest = max(float(expected.abs().max()), at_least)
    error = float((found.double() - expected.double()).abs().max())
    assert error <= relative * largest + nothing, f"error {error:.2e}, largest value {largest:.2e}"


def example(correct, incorrect):
    """A pair with such answers."""
    return Example(clean=(0, 1), corrupted=(0, 2), correct=correct, incorrect=incorrect)


def steps_of(method, n):
    """The argument `steps` for a method that integrates; none for others, which refuse it."""
    return {"steps": n} if get_method(method).integrates else {}
