"""What every edge of a model without norms is worth, in plain numpy: one run for every edge.

Every receiver reads a residual stream of its own, summed up from what senders send; shares no code
with `eap`.
"""

from __future__ import annotations

import numpy as np


def run(weights, shape, tokens, *, edge=None, replaced=None):
    """Logits at the last token, and every sender's output.

    `edge` (sender, receiver), by name, carries `replaced` instead of what its sender sends.
    """
    W = {name: np.asarray(own, np.float64) for name, own in weights.items()}
    n = len(tokens)
    sent = {"input": W["W_E"][list(tokens)]}
    constant = W["W_pos"][:n].copy()

    def read(receiver):
        terms = [
            replaced if edge == (sender, receiver) else output for sender, output in sent.items()
        ]
        return constant + sum(terms)

    for layer in range(shape["n_layers"]):
        own = {k: W[f"blocks.{layer}.{k}"] for k in ("W_Q", "W_K", "W_V", "W_O", "W_in", "W_out")}
        bias = {k: W[f"blocks.{layer}.b_{k}"] for k in ("Q", "K", "V", "O", "in", "out")}
        outputs = {}
        for head in range(shape["n_heads"]):
            q, k, v = (
                read(f"a{layer}.h{head}<{kind.lower()}>") @ own[f"W_{kind}"][head]
                + bias[kind][head]
                for kind in "QKV"
            )
            z = np.zeros_like(v)
            for query in range(n):
                scores = np.array([q[query] @ k[key] for key in range(query + 1)]) * shape["scale"]
                p = np.exp(scores - scores.max())
                z[query] = (p / p.sum()) @ v[: query + 1]
            outputs[f"a{layer}.h{head}"] = z @ own["W_O"][head]
        sent |= outputs
        constant = constant + bias["O"]
        hidden = np.maximum(read(f"m{layer}") @ own["W_in"].T + bias["in"], 0)
        sent[f"m{layer}"] = hidden @ own["W_out"].T
        constant = constant + bias["out"]
    return read("logits")[-1] @ W["W_U"].T, sent


def edge_values(weights, shape, examples, edges):
    """Mean change of the logit difference when each edge is corrupted; [n_edges]."""
    values = np.zeros(len(edges))
    for example in examples:
        correct, incorrect = example["correct"], example["incorrect"]

        def metric(logits, correct=correct, incorrect=incorrect):
            return logits[correct].mean() - logits[incorrect].mean()

        clean = metric(run(weights, shape, example["clean"])[0])
        _, corrupted = run(weights, shape, example["corrupted"])
        for i, edge in enumerate(edges):
            logits, _ = run(
                weights, shape, example["clean"], edge=edge, replaced=corrupted[edge[0]]
            )
            values[i] += (metric(logits) - clean) / len(examples)
    return values
