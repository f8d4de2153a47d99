"""Measures of circuits: normalised faithfulness, areas and AUROC.

The functions use arrays only, so figures can use them without a model. The formula of normalised
faithfulness is defined here and nowhere else.
"""

from collections.abc import Sequence
from itertools import pairwise
from math import inf
from typing import Any

import numpy as np
from jaxtyping import Float

from eap.runtime.errors import UserError
from eap.runtime.ranges import Range, real


def normalised(values: Any, clean: Any, ablated: Any) -> Any:
    """Normalised faithfulness of numbers or columns: 1 is the clean run, 0 the ablated run.

    Raises:
        UserError: the clean and the ablated value are equal.
    """
    if np.any(np.equal(clean, ablated)):
        raise UserError(
            "nothing to normalise by: the clean and the ablated run both have "
            f"{np.ravel(clean)[0]:.4g}"
        )
    return (values - ablated) / (clean - ablated)


def faithfulness_errors(
    values: Float[np.ndarray, "*circuit example"],
    clean: Float[np.ndarray, " example"],
    ablated: Float[np.ndarray, " example"],
) -> Float[np.ndarray, "*circuit"]:
    """Standard errors of normalised means, as of a ratio; NaN for one example.

    Circuit, clean and ablated run vary together over the same examples. So to first order (delta
    method) the faithfulness f varies as the mean of `v - c - f (b - c)` divided by the gap.
    """
    values, clean, ablated = (np.asarray(x, dtype=np.float64) for x in (values, clean, ablated))
    n = values.shape[-1]
    if n < 2:
        return np.full(values.shape[:-1], np.nan)
    gap = clean.mean() - ablated.mean()
    faithfulness = normalised(values.mean(-1), clean.mean(), ablated.mean())
    residuals = values - ablated - np.asarray(faithfulness)[..., None] * (clean - ablated)
    return np.asarray(residuals.std(axis=-1, ddof=1) / np.sqrt(n) / abs(gap))


# ---- areas under a curve of sizes ----------------------------------------------------------------

SHARES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""Circuit sizes, as shares of all edges, over which MIB computes areas (arXiv 2504.13151)."""


def circuit_sizes(n_edges: int, shares: Sequence[float] = SHARES) -> list[int]:
    """Numbers of edges that MIB selects for every share of `n_edges`, rounded down, unpruned."""
    return [int(share * n_edges) for share in check_shares(shares)]


def area(values: Any, shares: Sequence[float] = SHARES, *, log: bool = False) -> Any:
    """Area under a curve over circuit sizes, by the trapezoidal rule (Mueller et al. 2025).

    The rule uses the nominal shares. Nothing is added below the first share, so over MIB's shares a
    curve that is 1 everywhere has the area .999, and a curve that is 0 except at the whole model
    .25.

    Args:
        values: heights [.., share] of the curve, such as faithfulness (whose area is CPR) or
            |1 - faithfulness| (CMD).
        shares: shares at which the heights were measured, increasing, above 0 and at most 1.
        log: whether to integrate over log share and divide by its range, which gives the mean
            height on a logarithmic axis; a curve that is 1 everywhere then has 1.

    Returns:
        Area as a number, or an array [..] of areas.

    Raises:
        UserError: numbers of shares and values that differ, fewer than two shares, or shares that
            do not increase.
    """
    heights = np.asarray(values, dtype=np.float64)
    x = np.asarray(check_shares(shares))
    if heights.ndim == 0 or heights.shape[-1] != len(x):
        raise UserError(f"an area over {len(x)} sizes needs {len(x)} values, not {heights.shape}")
    if log:
        x = np.log(x) / np.log(x[-1] / x[0])
    total = (np.diff(x) * (heights[..., 1:] + heights[..., :-1]) / 2).sum(axis=-1)
    return total if total.ndim else float(total)


def check_shares(shares: Sequence[float]) -> list[float]:
    """Check circuit sizes given as shares of all edges, and return them as a list.

    Raises:
        UserError: fewer than two shares, or shares that do not increase from above 0 to at most 1.
    """
    checked = [real("a share of all edges", share, Range(-inf, inf)) for share in shares]
    growing = all(a < b for a, b in pairwise(checked))
    if len(checked) < 2 or not growing or checked[0] <= 0 or checked[-1] > 1:
        raise UserError(
            "circuit sizes must be at least two shares of all edges, growing, above 0 and at most "
            f"1, not {', '.join(map(str, checked[:10]))}"
        )
    return checked


# ---- rankings ------------------------------------------------------------------------------------


def auroc(scores: Any, truth: Any) -> float:
    """Exact area under the ROC curve: P(a true edge scores above a false one), ties counting half.

    Args:
        scores: scores of all edges; take absolute values first, if their sign is not to count.
        truth: mask of the edges that belong to the known circuit.

    Raises:
        UserError: no true or no false edge, or scores that are NaN.
    """
    flat = np.ravel(np.asarray(scores, dtype=np.float64))
    true = np.ravel(np.asarray(truth, dtype=bool))
    if flat.shape != true.shape:
        raise UserError(f"{flat.size} scores cannot be compared with the truth of {true.size}")
    if np.isnan(flat).any():
        raise UserError("some scores are NaN (never computed), so they have no rank")
    n_true, n_false = int(true.sum()), int((~true).sum())
    if not n_true or not n_false:
        raise UserError(
            f"an AUROC needs true and false edges; there are {n_true} true and {n_false} false ones"
        )
    _, level, counts = np.unique(flat, return_inverse=True, return_counts=True)
    below = np.cumsum(counts) - counts
    rank = below + (counts - 1) / 2  # rank of each level from 0; ties share their mean rank
    won = rank[level][true].sum() - n_true * (n_true - 1) / 2
    return float(won / (n_true * n_false))
