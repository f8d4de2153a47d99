"""Figure 6: edges found by EAP and EAP-IG, compared with the circuit of Wang et al. (2022).

Needs a model with GPT-2 small's shape. Writes
results/manual_overlap/<model>/csv/ioi_node_edge_precision_recall.csv and the figure.
"""

import eap_circuits
from manual_overlap import run


def main() -> None:
    """Draw results/manual_overlap/<model>/{png,pdf}/ioi_precision_recall."""
    run(__doc__, "ioi")


if __name__ == "__main__":
    eap_circuits.run(main)
