"""Figure 6: edges found by EAP and EAP-IG, compared with the circuit of Hanna et al. (2023).

Needs a model with GPT-2 small's shape. Writes
results/manual_overlap/<model>/csv/greater-than_node_edge_precision_recall.csv and the figure.
"""

import eap_circuits
from manual_overlap import run


def main() -> None:
    """Draw results/manual_overlap/<model>/{png,pdf}/greater-than_precision_recall."""
    run(__doc__, "greater-than")


if __name__ == "__main__":
    eap_circuits.run(main)
