"""Faithfulness of circuits by size on one task, for EAP, EAP-IG and EAP-IG with KL.

Scores every edge with each method, selects circuits of 30 to 1000 edges greedily by absolute
score, prunes the circuits, and measures the task's metric with all other edges corrupted. Writes
results/pareto/<model>/csv/<task>.csv and graphs/<model>/<task>_{vanilla,task,kl}.json.
"""

import eap_circuits
from eap import studies
from eap.studies import shell
from eap.studies.settings import CURVES, PAPER_CURVES


def main() -> None:
    """Run the experiment that the command line describes."""
    parser = shell.make_parser(__doc__)
    parser.add_argument(
        "--methods",
        nargs="+",
        choices=CURVES,
        default=list(PAPER_CURVES),
        help="methods to compare",
    )
    parser.add_argument("--metric", help="logit_diff, prob_diff, etc. (default: the task's metric)")
    shell.add_size_arguments(parser)
    parser.add_argument(
        "--n_random", type=shell.not_negative, default=5, help="number of random circuits per size"
    )
    shell.add_ig_arguments(parser)
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
