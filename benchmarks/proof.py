"""All methods on models with known circuits; writes docs/proof.md.

For each model and method: the largest score outside the circuit (exactly 0 is correct), the AUROC
of absolute scores for the true edges, and the distance of estimates from exact values. Also checks
an identity of CEAP: over any cut between layers, the scores sum to the change of the metric.
"""

import argparse
from pathlib import Path

import pandas as pd

import eap
from eap.data.collections import known_circuits
from eap.data.collections.known_circuits import KnownCircuit
from eap.methods import METHODS
from eap.runtime.atomic import write_atomically
from eap.statistics.measures import auroc
from eap.studies import shell

PAGE = Path(__file__).resolve().parents[1] / "docs" / "proof.md"

CUT_STEPS = (5, 50, 500)

INTRODUCTION = """# Proof: models whose circuit is known

Written by `make proof`. The models are in `data/known-circuits/`: three with weights by hand
(induction, majority, xor) and two compiled by Tracr (share-before, balance). They are causal, have
no norm, and have heads and MLPs beside their circuit that write what nobody reads or read what
never changes. The true edges are those whose corruption can change the output, by construction.

- **off** is the largest score of an edge off the circuit: exactly 0 is right, not something small.
  Only IFR, which follows the flow of activations and asks for no metric, scores edges that change
  nothing.
- **AUROC** is the chance that a true edge scores above a false one (magnitudes, ties half).
- **error** is the mean distance of the true edges' magnitudes from those of the exact values, as a
  share of their mean. Relevance rules (AttnLRP, GIM, GradDrop) halve or drop gradients on
  purpose: their scores rank edges, and are not meant to be their values.
"""

CUT = """## The cut identity of CEAP

Over any cut between layers, CEAP's scores of the edges that cross it sum to the metric of the
corrupted run minus that of the clean one, as the number of steps m grows (error of order 1/m). The
largest relative error over all cuts:
"""


def method_rows(known: KnownCircuit) -> list[dict[str, str | float]]:
    """Table with one row per method."""
    exact = eap.attribute(known.model, known.dataset, method="exact").scores
    true = known.circuit.in_graph
    off = known.circuit.edge_exists & ~true
    rows: list[dict[str, str | float]] = []
    for method in METHODS.values():
        scores = eap.attribute(known.model, known.dataset, method=method).scores
        error = (scores.abs() - exact.abs())[true].abs().mean() / exact[true].abs().mean()
        rows.append(
            {
                "model": known.name,
                "method": method.name,
                "off": float(scores[off].abs().max()),
                "AUROC": auroc(scores[known.circuit.edge_exists].abs().numpy(), known.truth),
                "error": float(error) if method.uses_metric else float("nan"),
            }
        )
    return rows


def cut_error(known: KnownCircuit, steps: int) -> float:
    """Largest relative error of the cut identity, over all cuts between layers."""
    scores = eap.attribute(known.model, known.dataset, method="CEAP", steps=steps).scores.double()
    clean, corrupted = eap.evaluate_baselines(known.model, known.dataset)
    change = float((corrupted["logit_diff"] - clean["logit_diff"]).double().mean())
    config, errors = known.model.config, []
    for layer in range(config.n_layers + 1):
        last = layer == config.n_layers
        senders = config.n_forward if last else config.heads(layer).start
        receivers = config.logits_receiver if last else config.receivers(layer, "q").start
        crossing = float(scores[:senders, receivers:].sum())
        errors.append(abs(crossing - change) / abs(change))
    return max(errors)


def as_markdown(frame: pd.DataFrame) -> str:
    """Table in Markdown, with numbers of three digits."""
    header = ["", "| " + " | ".join(frame.columns) + " |", "|---" * len(frame.columns) + "|"]
    lines = [
        "| " + " | ".join(_cell(own) for own in row) + " |" for row in frame.itertuples(index=False)
    ]
    return "\n".join([*header, *lines, ""])


def _cell(value: object) -> str:
    if not isinstance(value, float):
        return str(value)
    if value != value:
        return "-"
    return "0" if value == 0 else f"{value:.3g}"


def page() -> str:
    """The whole page."""
    circuits = [known_circuits.load(name) for name in known_circuits.names()]
    parts = [INTRODUCTION]
    for known in circuits:
        parts.append(f"## {known.name}: {known.description}\n")
        parts.append(
            f"Made by {known.made_by}; {len(known.dataset)} pairs; "
            f"{known.circuit.count_edges()} of {known.circuit.n_edges} edges are true: "
            + ", ".join(f"`{name}`" for name in known.circuit.edge_names())
            + "."
        )
        parts.append(as_markdown(pd.DataFrame(method_rows(known)).drop(columns="model")))
    cuts = [
        {"model": known.name} | {f"m = {steps}": cut_error(known, steps) for steps in CUT_STEPS}
        for known in circuits
    ]
    return "\n".join([*parts, CUT + as_markdown(pd.DataFrame(cuts))])


def main() -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=PAGE, help="page to write")
    args = parser.parse_args()
    text = page()
    with write_atomically(args.output) as temporary:
        temporary.write_text(text, encoding="utf8")
    shell.say(f"wrote {shell.shown(args.output)}")


if __name__ == "__main__":
    shell.run(main)
