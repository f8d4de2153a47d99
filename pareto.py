"""Faithfulness of circuits by size on one task, for EAP, EAP-IG and EAP-IG with KL.

Scores every edge with each method, selects circuits of 30 to 1000 edges greedily by absolute
score, prunes the circuits, and measures the task's metric with all other edges corrupted. Writes
results/pareto/<model>/csv/<task>.csv and graphs/<model>/<task>_{vanilla,task,kl}.json.
"""

import eap_circuits
from eap import studies
from eap.studies import shell


def main() -> None:
    """Run the experiment that the command line describes."""
    parser = shell.make_parser(__doc__)
    shell.add_curve_arguments(parser)
    shell.add_size_arguments(parser)
    args = parser.parse_args()

    settings = shell.settings_of(args)
    metric = studies.metric_name(args.metric, args.task)
    model = studies.load_model_of(settings)
    dataset = studies.load_task(settings, model, args.task)
    sizes = studies.pareto_sizes(args.end, studies.count_edges(settings, model), args.sizes)
    studies.pareto_study(
        settings, model, dataset, metric=metric, sizes=sizes, n_random=args.n_random,
        curves=args.methods,
    )  # fmt: skip


if __name__ == "__main__":
    eap_circuits.run(main)
