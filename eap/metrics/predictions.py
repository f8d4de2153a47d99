"""Softmax of a run at the last token, and its divergences from another run.

Most edges hardly move the distribution, and KL and JS of two nearly equal distributions p and q
are second-order numbers: `sum p (log p - log q)` computes them by cancelling first-order terms,
which in float32 leaves mostly rounding error. Here no first-order term is ever added. With
d = log q - log p,

    KL(p, q) = sum p (e^d - 1 - d),

which holds because p and q both sum to 1; and, with m = (p + q) / 2 and t = tanh(d / 2),

    JS(p, q) = sum m ((1 + t) log(1 + t) + (1 - t) log(1 - t)) / 2.

Every term is of second order and none is negative; for small d both are summed as power series.

On a CPU and without a gradient, `divergences_in_cache` does the same in place, a few rows at a
time.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import factorial, log
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import softplus

__all__ = ["Predictions"]

BLOCK = 2**17
"""Numbers in a block that is processed at once; a few such blocks fit in a processor's cache."""
TAME = 20.0
"""Largest |d| of rows that `divergences_in_cache` accepts, so that no p e^d underflows."""
KL_NEAR, JS_NEAR = 0.1, 0.25
"""Largest |d| at which series are summed; above it, cancellation costs at most 100 roundings."""


@dataclass(frozen=True, eq=False)
class Predictions:
    """Logits of a run at the last token, with the quantities that several metrics share.

    Attributes:
        logits: logits of the run.
        clean: predictions of the clean run to compare with; None: this run is the clean run.
    """

    logits: Float[Tensor, "batch n_tokens"]
    clean: "Predictions | None" = None

    @cached_property
    def largest(self) -> Float[Tensor, "batch 1"]:
        """Largest logit, without a gradient, which cancels in every result."""
        return self.logits.detach().amax(dim=-1, keepdim=True)

    @cached_property
    def exponentials(self) -> Float[Tensor, "batch n_tokens"]:
        """Exponentials of the logits minus the largest logit."""
        return (self.logits - self.largest).exp()

    @cached_property
    def total(self) -> Float[Tensor, "batch 1"]:
        """Sum of the exponentials, at least 1."""
        if not _fits_in_cache(self.logits):
            return self.exponentials.sum(dim=-1, keepdim=True)
        total = torch.empty_like(self.largest)
        for rows in _blocks(self.logits):
            exponentials = (self.logits[rows] - self.largest[rows]).exp_()
            torch.sum(exponentials, dim=-1, keepdim=True, out=total[rows])
        return total

    @cached_property
    def probabilities(self) -> Float[Tensor, "batch n_tokens"]:
        """Probability of every token (the softmax)."""
        return self.exponentials / self.total

    @cached_property
    def log_ratio(self) -> Float[Tensor, "batch n_tokens"]:
        """Log-probabilities minus those of the clean run.

        Logits are subtracted before anything is rounded. The rounding error in the difference of
        the normalisers is then removed: with p the clean probabilities, p e^d sums to 1.
        """
        clean = self if self.clean is None else self.clean
        d = (self.logits - clean.logits).nan_to_num(0.0, torch.inf, -torch.inf)  # both ruled out
        d = d - ((self.largest - clean.largest) + (self.total.log() - clean.total.log()))
        with torch.no_grad():
            excess = (clean.probabilities * d.clamp(max=1.0).expm1_()).sum(-1, keepdim=True)
            # A larger excess comes from the clamp, not from rounding; the divergence is large then.
            size = 20 + (self.largest - clean.largest).abs()
            is_rounding = excess.abs() < 4 * torch.finfo(d.dtype).eps * size
            excess = torch.where(is_rounding, excess, 0.0)
        return d - excess.log1p()

    @cached_property
    def kl(self) -> Float[Tensor, " batch"]:
        """KL(clean run, this run), in nats."""
        if self._is_measured_in_cache:
            return self._divergences[0]
        return _kl((self.clean or self).probabilities, self.probabilities, self.log_ratio)

    @cached_property
    def js(self) -> Float[Tensor, " batch"]:
        """Jensen-Shannon divergence between the two runs, in nats."""
        if self._is_measured_in_cache:
            return self._divergences[1]
        return _js((self.clean or self).probabilities, self.probabilities, self.log_ratio)

    @property
    def _is_measured_in_cache(self) -> bool:
        return _fits_in_cache(self.logits, (self.clean or self).logits)

    @cached_property
    def _divergences(self) -> Float[Tensor, "2 batch"]:
        """KL and JS together, because they share most of their work."""
        return divergences_in_cache(self.logits, self.clean or self)


# ---- out of place, with a gradient ---------------------------------------------------------------


def _kl(p: Tensor, q: Tensor, d: Tensor) -> Float[Tensor, " batch"]:
    near = d.abs() < KL_NEAR
    small = torch.where(near, d, 0.0)
    series = small.square() * _polynomial(small, _kl_series(d.dtype))
    # A token that only the clean run rules out contributes q; one that only this run does, inf.
    change = torch.where(d.abs() < TAME, p * d.clamp(-TAME, TAME).expm1(), q - p)
    terms = change - p * torch.where(p > 0, d, 0.0)
    return torch.where(near, p * series, terms).sum(dim=-1)


def _js(p: Tensor, q: Tensor, d: Tensor) -> Float[Tensor, " batch"]:
    # Where d is clamped, the smaller of p and q is negligible beside the larger.
    d = d.clamp(-40, 40)
    near = d.abs() < JS_NEAR
    t2 = torch.tanh(torch.where(near, d, 0.0) / 2).square()
    series = t2 * _polynomial(t2, _js_series(d.dtype))
    # p log(p / m) + q log(q / m): log 2 - log(1 + e^-|d|) times each of p and q, minus |d| times
    # the smaller of the two.
    total, distance = p + q, d.abs()
    terms = total * (log(2) - softplus(-distance)) - torch.where(d > 0, p, q) * distance
    return torch.where(near, total * series, terms).sum(dim=-1) / 2


def _kl_series(dtype: torch.dtype) -> list[float]:
    """(e^d - 1 - d) / d^2 = sum over k of d^k / (k + 2)!, to the order that |d| < KL_NEAR needs."""
    return [1 / factorial(k + 2) for k in range(11 if dtype == torch.float64 else 4)]


def _js_series(dtype: torch.dtype) -> list[float]:
    """((1 + t) log(1 + t) + (1 - t) log(1 - t)) / 2 t^2 = sum of t^2k / (2 (k + 1) (2 k + 1))."""
    return [1 / (2 * (k + 1) * (2 * k + 1)) for k in range(8 if dtype == torch.float64 else 3)]


def _polynomial(x: Tensor, coefficients: Sequence[float]) -> Tensor:
    """Sum of coefficients[k] x^k."""
    *rest, value = coefficients
    result = torch.full_like(x, value)
    for coefficient in reversed(rest):
        result = result * x + coefficient
    return result


# ---- in place, in the cache ----------------------------------------------------------------------


def _fits_in_cache(*logits: Tensor) -> bool:
    """Whether logits are processed in blocks: on a CPU, in full precision, without a gradient."""
    return all(
        row.device.type == "cpu"
        and row.dtype in (torch.float32, torch.float64)
        and not (row.requires_grad and torch.is_grad_enabled())
        for row in logits
    )


def _blocks(logits: Float[Tensor, "batch n_tokens"]) -> Iterator[slice]:
    """Slices of a few rows each."""
    step = max(1, BLOCK // logits.shape[1])
    return (slice(first, first + step) for first in range(0, len(logits), step))


class _Buffers(NamedTuple):
    """Scratch tensors for one block of rows, small enough to stay in the processor's cache.

    Attributes:
        log_ratio: d of the module's docstring.
        expm1: e^d - 1.
        ratio: e^d - 1 - d; then t = tanh(d / 2).
        square: scratch for sums; then t^2.
        series: terms of the power series of JS.
    """

    log_ratio: Float[Tensor, "rows n_tokens"]
    expm1: Float[Tensor, "rows n_tokens"]
    ratio: Float[Tensor, "rows n_tokens"]
    square: Float[Tensor, "rows n_tokens"]
    series: Float[Tensor, "rows n_tokens"]


def divergences_in_cache(
    logits: Float[Tensor, "batch n_tokens"], clean: Predictions
) -> Float[Tensor, "2 batch"]:
    """KL and JS from the clean run, without a gradient.

    This takes a quarter of the time of the plain form (`_kl`, `_js`), measured for 32 runs of
    50,257 tokens in float32 on one thread, because a few rows at a time stay in the processor's
    cache.

    Args:
        logits: logits of a run.
        clean: predictions of the clean run.
    """
    values = logits.new_empty(2, len(logits))
    buffers: _Buffers | None = None
    for rows in _blocks(logits):
        p, other = clean.probabilities[rows], logits[rows]
        if buffers is None or len(buffers.log_ratio) != len(p):
            buffers = _Buffers(*logits.new_empty(len(_Buffers._fields), *p.shape))
        d = torch.sub(other, clean.logits[rows], out=buffers.log_ratio)
        d -= _weighted_sum(p, d, buffers.expm1)
        low, high = torch.aminmax(d)
        if float(low) > -TAME and float(high) < TAME:  # false also for NaN
            values[:, rows] = _divergences_of_block(p, buffers, max(-float(low), float(high)))
        else:
            run = Predictions(other, Predictions(clean.logits[rows]))
            values[0, rows] = _kl(p, run.probabilities, run.log_ratio)
            values[1, rows] = _js(p, run.probabilities, run.log_ratio)
    return values


def _weighted_sum(p: Tensor, x: Tensor, scratch: Tensor) -> Float[Tensor, "rows 1"]:
    return torch.mul(p, x, out=scratch).sum(dim=-1, keepdim=True)


def _divergences_of_block(
    p: Float[Tensor, "rows n_tokens"], buffers: _Buffers, largest: float
) -> Float[Tensor, "2 rows"]:
    """KL and JS of some rows.

    Args:
        p: clean probabilities.
        buffers: scratch tensors, all overwritten; `log_ratio` holds d + log sum p e^d, which is d
            plus a constant that makes its mean over p zero.
        largest: largest absolute value of `log_ratio`.

    With b that buffer and f = e^b - 1 - b: p b sums to 0 (up to a rounding error, which is added),
    so p e^b sums to 1 + sum p f. The logarithm of this sum is KL, and also the constant that
    separates b from d.
    """
    d, u, v, w, series = buffers
    mean = _weighted_sum(p, d, u)
    if largest < KL_NEAR:
        f = _polynomial_in_place(v, d, _kl_series(d.dtype)).mul_(d).mul_(d)
    else:
        # b = s + r, where r is 0 if b is near: f(b) = f(s) + (e^s - 1) v + v - r, v = e^r - 1.
        r = torch.nn.functional.softshrink(d, KL_NEAR)
        s = torch.sub(d, r, out=w)
        f = _polynomial_in_place(v, s, _kl_series(d.dtype)).mul_(s).mul_(s)
        s += f
        f -= r
        f += r.expm1_()
        f.addcmul_(s, r)
    excess = _weighted_sum(p, f, w)
    x = mean + excess
    shift = x.log1p()
    # For small x, log(1 + x) is accurate, but the rounding error of the mean may be as large.
    kl = torch.where(excess < 1, excess + (shift - x), shift - mean).clamp_(min=0)
    # From here on, d and u = e^d - 1 have their true values.
    torch.add(d, f, out=u).mul_((-shift).exp()).add_((-shift).expm1())
    d -= shift
    t = torch.div(u, torch.add(u, 2, out=v), out=v)
    t2 = torch.mul(t, t, out=w)
    _polynomial_in_place(series, t2, _js_series(d.dtype)).mul_(t2)
    u *= 0.5
    if largest < JS_NEAR / 2:  # |d| is at most twice as large
        terms = series
    else:
        # For larger |d|, the terms are d (1 + t) / 2 - log(1 + u / 2).
        d *= 0.5
        torch.addcmul(d, d, t, out=v).sub_(torch.log1p(u, out=w))
        is_far = torch.hardshrink(d, JS_NEAR / 2).sign_().abs_()
        terms = torch.lerp(series, v, is_far, out=series)
    js = _weighted_sum(p, terms, w) + torch.mul(w, u, out=v).sum(dim=-1, keepdim=True)
    return torch.stack([kl[:, 0], js[:, 0]])


def _polynomial_in_place(out: Tensor, x: Tensor, coefficients: Sequence[float]) -> Tensor:
    """Sum of coefficients[k] x^k."""
    torch.mul(x, coefficients[-1], out=out)
    for coefficient in reversed(coefficients[1:-1]):
        out.add_(coefficient).mul_(x)
    return out.add_(coefficients[0])
