"""Means of activations over the prompts of a data set."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from einops import reduce
from jaxtyping import Float
from torch import Tensor

from eap.data.batches import group_examples, load_batch, plan_batches
from eap.data.dataset import Dataset
from eap.data.example import Example
from eap.model.devices import float64_device
from eap.model.model import Model
from eap.model.runs import LayerTrace, outputs_everywhere
from eap.model.shapes import shapes_of
from eap.runtime.memory import Budget, Extent, mean_need
from eap.runtime.progress import progress_bar
from eap.runtime.resources import Resources


@dataclass(frozen=True)
class Prompts:
    """Prompts of a mean: the tokens of a data set's prompts, pooled or position by position."""

    dataset: Dataset
    prompts: str
    per_position: bool
    limits: Resources

    @torch.no_grad()
    def means(
        self,
        model: Model,
        each: Callable[[Tensor, list[LayerTrace]], Sequence[Tensor]],
        *,
        n_numbers: int,
        n_parts: int = 0,
    ) -> list[Float[Tensor, "_k _pos _n"]]:
        """Means of quantities [k, batch, pos, n], computed from senders' outputs and layer traces.

        Args:
            model: model that runs the prompts.
            each: function that computes the quantities of a batch.
            n_numbers: number of values of all means at a position, for the memory budget.
            n_parts: number of values per token of quantities that are not outputs.

        Raises:
            UserError: a single prompt does not fit in the memory.
        """
        examples, sums = self.dataset.examples, list[Tensor]()
        lengths = [len(example.clean) for example in examples]
        home = float64_device(model.device)
        n_positions = max(lengths) if self.per_position else 1
        count = torch.zeros(n_positions, dtype=torch.float64, device=home)
        batches = self._batches(model, examples, n_numbers * n_positions, n_parts)
        what = f"means over {self.prompts} prompts"
        for rows in progress_bar(batches, what, quiet=self.limits.quiet):
            batch = load_batch(examples, rows, model.device, lambda _: 0)
            tokens = batch.clean if self.prompts == "clean" else batch.corrupted
            outputs, trace, _ = outputs_everywhere(model, tokens, batch.last)
            places = torch.arange(batch.n_positions, device=model.device)
            real = (places <= batch.last[:, None]).to(outputs.dtype)  # 0 for padding
            along = "pos" if self.per_position else "1"
            count += reduce(real.to(home).double(), f"batch pos -> {along}", "sum")
            for number, x in enumerate(each(outputs, trace)):
                if number == len(sums):
                    shape = (len(x), n_positions, x.shape[-1])
                    sums.append(torch.zeros(shape, dtype=torch.float64, device=home))
                for total, sent in zip(sums[number], x, strict=True):  # one sender at a time
                    kept = (sent * real.to(sent.device)[..., None]).to(home).double()
                    total += reduce(kept, f"batch pos n -> {along} n", "sum")
        return [(x / count[:, None]).to(model.device, model.residual_dtype) for x in sums]

    def _batches(
        self, model: Model, examples: Sequence[Example], n_numbers: int, n_parts: int
    ) -> list[tuple[int, ...]]:
        """Rows of every batch, with batches as large as the memory allows."""
        shapes, size = shapes_of(model), self.limits.batch_size
        if size is None:
            # Memory of the sums in float64, and of the means.
            budget = Budget.of(model.device, self.limits.memory_budget, reserved=20 * n_numbers)
            groups = group_examples(examples, lambda _: 0)
            extents = [Extent(len(g.rows), g.n_positions, g.end) for g in groups]
            size = budget.batch_size(
                extents, lambda extent: mean_need(shapes, extent, n_parts), "a mean"
            )
        return plan_batches(examples, size, lambda _: 0)
