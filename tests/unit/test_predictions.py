"""Divergences in blocks, in place, are those of whole tensors; which a gradient leaves alone."""

from __future__ import annotations

import math

import pytest
import torch

from eap.metrics import predictions
from eap.metrics.predictions import Predictions

SCALES = (0.0, 1e-6, 1e-3, 0.05, 0.2, 0.6, 2.0, 8.0, 30.0, 300.0)
"""Of what a row's logits change by: series alone, both series and terms, and too large for them."""


def rows(d_vocab: int = 300) -> tuple[torch.Tensor, torch.Tensor]:
    """Clean logits and a run's: every scale, a constant more, and tokens that are ruled out."""
    generator = torch.Generator().manual_seed(0)
    scales = torch.tensor(SCALES).double()[:, None]
    clean = 4 * torch.randn(len(SCALES), d_vocab, generator=generator).double() - 30
    logits = clean + scales * torch.randn(len(SCALES), d_vocab, generator=generator).double()
    both, by_clean, by_run = (clean[3:4].clone() for _ in range(3))
    both[0, 5] = by_clean[0, 6] = by_run[0, 7] = -math.inf
    clean = torch.cat([clean, clean, both, by_clean, clean[3:4]])
    return clean, torch.cat(
        [logits, logits + 7, both + logits[2:3] - clean[2:3], logits[3:4], by_run]
    )


def textbook(logits: torch.Tensor, clean: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    p, q = clean.log_softmax(-1), logits.log_softmax(-1)
    mixture = torch.logaddexp(p, q) - math.log(2)
    kl, to_p, to_q = (
        torch.where(x > -math.inf, x.exp() * (x - y), 0.0).sum(-1)
        for x, y in ((p, q), (p, mixture), (q, mixture))
    )
    return kl, (to_p + to_q) / 2


@pytest.mark.parametrize("block", [1, 700, 2**17])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_blocks_have_the_values_of_whole_tensors(monkeypatch, block, dtype):
    """Whatever rows fall into one block; and both have the textbook's, to its own rounding."""
    clean, logits = (x.to(dtype) for x in rows())
    whole = Predictions(logits.clone().requires_grad_(), Predictions(clean))
    monkeypatch.setattr(predictions, "BLOCK", block)
    run = Predictions(logits, Predictions(clean))
    exact = textbook(logits.double(), clean.double())
    for ours, slow, expected in zip((run.kl, run.js), (whole.kl, whole.js), exact, strict=True):
        assert not ours.requires_grad
        assert slow.requires_grad
        assert (ours >= 0).all()
        rtol = 1e-5 if dtype == torch.float32 else 1e-10
        torch.testing.assert_close(ours, slow.detach(), rtol=rtol, atol=1e-14)
        torch.testing.assert_close(ours.double(), expected, rtol=10 * rtol, atol=1e-14)
    torch.testing.assert_close(run.total, whole.total.detach())


def test_under_no_grad_logits_that_require_a_gradient_are_measured_alike():
    clean, logits = (x.float() for x in rows())
    expected = Predictions(logits, Predictions(clean)).kl
    with torch.no_grad():
        assert torch.equal(Predictions(logits.requires_grad_(), Predictions(clean)).kl, expected)


def test_logits_and_clean_run_are_left_as_they_are():
    clean, logits = (x.float() for x in rows())
    before = clean.clone(), logits.clone()
    run = Predictions(logits, Predictions(clean))
    assert run.kl is run.kl
    assert run.js.shape == (len(logits),)
    assert torch.equal(clean, before[0])
    assert torch.equal(logits, before[1])
