"""Means over the prompts of a data set, of what a model computes there."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from einops import reduce
from jaxtyping import Float
from torch import Tensor

from eap.data.batches import load_batch, plan_batches
from eap.data.dataset import Dataset
from eap.model.devices import float64_device
from eap.model.model import Model
from eap.model.runs import LayerTrace, outputs_everywhere


@dataclass(frozen=True)
class Prompts:
    """What a mean is over: the tokens of a data set's prompts, together or position by position."""

    dataset: Dataset
    prompts: str
    per_position: bool
    batch_size: int

    @torch.no_grad()
    def means(
        self, model: Model, each: Callable[[Tensor, list[LayerTrace]], list[Tensor]]
    ) -> list[Float[Tensor, "_k _pos _n"]]:
        """Means of quantities [k, batch, pos, n], made of senders' outputs and a run's layers."""
        examples, sums = self.dataset.examples, list[Tensor]()
        lengths = [len(example.clean) for example in examples]
        home = float64_device(model.device)
        n_positions = max(lengths) if self.per_position else 1
        count = torch.zeros(n_positions, dtype=torch.float64, device=home)
        for rows in plan_batches(examples, self.batch_size, lambda _: 0):
            batch = load_batch(examples, rows, model.device, lambda _: 0)
            tokens = batch.clean if self.prompts == "clean" else batch.corrupted
            outputs, trace, _ = outputs_everywhere(model, tokens, batch.last)
            places = torch.arange(batch.n_positions, device=model.device)
            real = (places <= batch.last[:, None]).to(outputs.dtype)  # 0 at padding
            along = "pos" if self.per_position else "1"
            count += reduce(real.to(home).double(), f"batch pos -> {along}", "sum")
            for number, x in enumerate(each(outputs, trace)):
                kept = (x * real.to(x.device)[None, :, :, None]).to(home).double()
                total = reduce(kept, f"k batch pos n -> k {along} n", "sum")
                sums[number : number + 1] = [sums[number] + total if number < len(sums) else total]
        return [(x / count[:, None]).to(model.device, model.residual_dtype) for x in sums]
