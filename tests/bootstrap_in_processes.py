"""For `torchrun`: what processes make together of a known circuit, saved by every one of them.

A bootstrap, a certificate, a Gram matrix, and a learned ranking, the second time from its
checkpoint.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from eap.analysis import certificates, clusters, stability
from eap.attribution import attribute
from eap.data.collections import known_circuits
from eap.engine.recipe import Recipe
from eap.runtime import distributed
from eap.runtime.checkpoint import Checkpoint
from eap.soft import learning


def main() -> None:
    folder, batch_size = Path(sys.argv[1]), int(sys.argv[2])
    distributed.start()
    known = known_circuits.load("majority")
    found = stability.bootstrap(
        known.model, known.dataset, sizes=[3, 5], n_resamples=20, batch_size=batch_size
    )
    spans = attribute(
        known.model, known.dataset.with_spans("auto"), spans=True, batch_size=batch_size
    )
    certified = certificates.certify(
        known.model, known.dataset, 5, n_subsets=60, batch_size=batch_size, quiet=True
    )
    gram = clusters.gram_matrix(known.model, known.dataset, batch_size=batch_size)
    checkpoint = Checkpoint(folder / "learned.safetensors", {}, seconds=0.0)
    recipe = Recipe(steps=3, pairs=6, optimizer="sgd")
    learned, again = (
        learning.learn_ranking(
            known.model, known.dataset, recipe=recipe, checkpoint=checkpoint
        ).scores.numpy()
        for _ in range(2)
    )
    np.savez(
        folder / f"{distributed.rank()}.npz",
        frequencies=np.stack([own.frequency.numpy() for own in found.sizes]),
        nulls=np.stack([own.frequency.numpy() for own in found.null.sizes]),
        jaccard=np.array([own.edge_jaccard for own in found.sizes]),
        scores=found.resamples.scores.numpy(),
        gram=gram,
        spans=spans.scores.numpy(),
        votes=certified.edges.share,
        of_nodes=certified.nodes.share,
        learned=learned,
        again=again,
    )
    distributed.stop()


if __name__ == "__main__":
    main()
