"""What heads move between spans, by one run for each key span with one residual stream a receiver.

The change of a head's result is read off a run in which its keys (or values) alone read what the
ablated prompt sends, at the positions of one span; the metric's gradient there is that of all that
reads the head. Where the change is to be linear, it is the derivative of a small step.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from reference import oracle
from reference.split_run import (
    add_up,
    existing_edges,
    reachable,
    receiver_names,
    sender_names,
    shape_of,
    split_run,
    token_batch,
)


def crossing(model, pair, metric, kind: str) -> Tensor:
    """[head, key span, query span] of one pair; `kind` is 'k' (exact) or 'v' (first order)."""
    shape = shape_of(model, expanded=True)
    exists, senders = existing_edges(shape), sender_names(shape)
    receivers, n = receiver_names(shape), len(pair.clean)
    clean, ablated = (
        oracle.sender_outputs(model, tokens, expanded=True)
        for tokens in (pair.clean, pair.corrupted)
    )
    with torch.no_grad():
        logits = oracle.last_logits(model, pair.clean)
    at_inputs = oracle.receiver_gradients(model, pair.clean, [metric], logits, expanded=True)[0]
    bounds = list(pairwise((*pair.spans, n)))
    heads = [number for number, name in enumerate(senders) if name.startswith("a")]
    moved = torch.zeros(len(heads), len(bounds), len(bounds), dtype=clean.dtype)

    @torch.no_grad()
    def results(layer: int, start: int, end: int, step: float) -> Tensor:
        """What the heads send when a layer's keys (or values) there are a step towards ablated."""
        where = torch.zeros(n, 1, dtype=clean.dtype)
        where[start:end] = step

        def receiver_input(receiver: int, sent) -> Tensor:
            name = receivers[receiver]
            ours = name.startswith(f"a{layer}.") and name.endswith(f"<{kind}>")
            return add_up(
                sent[u] + where * (ablated[u] - clean[u]) if ours else sent[u]
                for u in reachable(shape, receiver, sent)
            )

        batch = token_batch(model, pair.clean)
        _, run = split_run(model, batch, receiver_input, expanded=True)
        return torch.cat([run.senders[u] for u in heads])

    for layer in range(shape.n_layers):
        of_layer = [i for i, u in enumerate(heads) if senders[u].startswith(f"a{layer}.")]
        for key, (start, end) in enumerate(bounds):
            if kind == "k":
                change = results(layer, start, end, 1.0) - results(layer, start, end, 0.0)
            else:
                step = 1e-4
                ends = [results(layer, start, end, sign * step) for sign in (1, -1)]
                change = (ends[0] - ends[1]) / (2 * step)
            for i in of_layer:
                readers = exists[heads[i]].nonzero().flatten()
                by_position = (change[i] * at_inputs[readers].sum(0)).sum(-1)
                for query, (first, last) in enumerate(bounds):
                    moved[i, key, query] = by_position[first:last].sum()
    return moved
