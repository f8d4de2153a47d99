"""Means and standard errors over examples, accumulated in one pass.

Values come in batches; their number, mean and sum of squared deviations are merged batch by batch
(Chan, Golub and LeVeque 1983), so equal values have a standard error of zero and no digits are lost
to squares. The state is one tensor, which can be saved, resumed, and summed over processes.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from eap.model.devices import float64_device
from eap.runtime import distributed


@dataclass(frozen=True, eq=False)
class Moments:
    """Number, mean and sum of squared deviations of values in cells, [3, *cells], kept in place.

    Cells may differ in the number of examples that they have seen.
    """

    state: Float64[Tensor, "3 *cells"]

    @classmethod
    def zeros(cls, *shape: int, device: torch.device | None = None) -> "Moments":
        """Moments of no example, on `device` if it supports float64, else on the CPU."""
        device = None if device is None else float64_device(device)
        return cls(torch.zeros(3, *shape, dtype=torch.float64, device=device))

    def add(self, values: Float[Tensor, "batch *cells"], index: tuple[Any, ...] = ()) -> None:
        """Add the values of a batch to the cells that `index` selects (all cells, if empty)."""
        values = values.to(self.state.device, torch.float64)
        place = (slice(None), *index)
        count, mean, squares = self.state[place]
        n = len(values)
        batch_mean = values.mean(dim=0)
        delta, total = batch_mean - mean, count + n
        squares = squares + (values - batch_mean).square().sum(dim=0) + delta**2 * count * n / total
        self.state[place] = torch.stack([total, mean + delta * n / total, squares])

    def merge_processes(self, what: str = "values") -> None:
        """Merge the moments of all processes, in every process; `what` names them in errors."""
        if distributed.count() == 1:
            return
        count, mean, squares = (part.clone() for part in self.state.cpu())
        total = distributed.sum_over_processes(count.clone(), what)
        seen = total.clamp(min=1)
        merged = distributed.sum_over_processes(mean * count, what) / seen
        squares = distributed.sum_over_processes(squares + count * (mean - merged) ** 2, what)
        self.state.copy_(torch.stack([total, merged, squares]))

    def count_zeros(self, n: int) -> None:
        """Count zeros for examples that a cell has not seen, up to `n` examples."""
        count, mean, squares = self.state.clone()
        self.state[0] = n
        self.state[1] = mean * (count / n)
        self.state[2] = squares + mean**2 * (count * (n - count) / n)

    @property
    def mean(self) -> Float64[Tensor, "*cells"]:
        """Mean of every cell, on the CPU."""
        return self.state[1].cpu()

    @property
    def standard_error(self) -> Float64[Tensor, "*cells"] | None:
        """Standard error of the mean over examples; None for a single example."""
        count, _, squares = self.state.cpu()
        if int(count.max()) < 2:
            return None
        return (squares / (count * (count - 1)).clamp(min=1)).sqrt()
