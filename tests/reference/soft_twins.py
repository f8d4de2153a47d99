"""Soft circuits by loops and autograd, in float64, and the package's beside them."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import torch

import eap
from eap.engine.prepared import Work, demand_of_gradients
from eap.metrics.metric import METRICS, Predictions
from eap.runtime.resources import Resources
from eap.soft.circuits import run_soft_circuit
from reference import oracle, twins
from reference.twins import RAGGED, dataset_of

PAIRS = RAGGED[1:4]  # of two lengths and first differences
AT_CLEAN = ([1.0], [1.0])


def random_masks(family, *, expanded=False, seed=0, n_spans=None):
    """Between 0 and 1, and 7 where there is no edge: nobody may look there."""
    exists = twins.edges_of(family, expanded=expanded)
    exists = exists if n_spans is None else exists.expand(n_spans, -1, -1)
    generator = torch.Generator().manual_seed(seed)
    masks = torch.rand(exists.shape, generator=generator, dtype=torch.float64)
    return masks.masked_fill(~exists, 7.0)


def soft_gradient(family, dtype, masks, metric, *, expanded=False, ablation=None, examples=PAIRS):
    """Mean metric over examples at some masks, and its gradient, by the package."""
    model = twins.load(family, dtype)
    config = replace(model.config, expanded_kv=expanded)
    where = eap.ablation.get_ablation(ablation)
    with twins.precision(family, dtype):
        work = Work.plan(
                model, dataset_of(examples), [METRICS[metric]], where, config,
                Resources(batch_size=8), demand_of_gradients("a soft circuit", config),
            )  # fmt: skip
        leaf = masks.to(dtype).requires_grad_()
        total = torch.zeros((), dtype=dtype)
        for batch in work.batches("", quiet=True):
            clean = Predictions(batch.unembed(batch.run_clean()[:, 0]))
            final = run_soft_circuit(model, leaf, batch)
            run = Predictions(batch.unembed(final), clean)
            total = total + METRICS[metric].measure(run, batch.answers).sum()
        mean = total / len(examples)
        (gradient,) = torch.autograd.grad(mean, leaf)
    return mean.detach(), gradient


@lru_cache(maxsize=64)
def outside_of(family, example, expanded):
    with oracle.float64():
        return oracle.sender_outputs(twins.hf_model(family), example.corrupted, expanded=expanded)


def twin_gradient(family, masks, metric, *, expanded=False, examples=PAIRS):
    """The same by the twin's loops and autograd, in float64."""
    model, leaf = twins.hf_model(family), masks.clone().requires_grad_()
    values = []
    with oracle.float64():
        for example in examples:
            clean = oracle.last_logits(model, example.clean)
            measure = oracle.metric_of(metric, example.correct, example.incorrect)
            outside = outside_of(family, example, expanded)
            by_position = leaf
            if leaf.ndim == 3:
                ends = (*example.spans[1:], len(example.clean))
                lengths = [end - start for start, end in zip(example.spans, ends, strict=True)]
                by_position = leaf.repeat_interleave(torch.tensor(lengths), dim=0)
            run = oracle.run_with_masks(
                model, example.clean, outside, by_position, expanded=expanded
            )
            values.append(measure(run, clean))
        mean = torch.stack(values).mean()
        (gradient,) = torch.autograd.grad(mean, leaf)
    return mean.detach(), gradient
