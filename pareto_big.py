"""Faithfulness of circuits by size on large models, with sizes up to a fraction of all edges.

Does the same as pareto.py, but with --n_steps sizes, evenly spaced up to --end_proportion of the
graph's edges. Writes results/pareto/<model>/csv/<task>.csv and
graphs/<model>/<task>_{vanilla,task,kl}.json (or .safetensors for graphs of more than half a million
edges).
"""

import eap_circuits
from eap import studies
from eap.studies import shell


def main() -> None:
    """Run the experiment that the command line describes."""
    parser = shell.make_parser(__doc__)
    shell.add_curve_arguments(parser)
    parser.add_argument(
        "--eval_batch_size",
        type=shell.positive,
        help="batch size for measuring circuits, in pairs (default: --batch_size)",
    )
    parser.add_argument(
        "--end_proportion",
        type=shell.share,
        default=0.04,
        help="largest circuit size, as a fraction of all edges",
    )
    parser.add_argument(
        "--n_steps", type=shell.number_of("steps"), default=10, help="number of circuit sizes"
    )
    args = parser.parse_args()

    settings = shell.settings_of(args)
    metric = studies.metric_name(args.metric, args.task)
    model = studies.load_model_of(settings)
    dataset = studies.load_task(settings, model, args.task)
    n_edges = studies.count_edges(settings, model)
    studies.pareto_study(
        settings,
        model,
        dataset,
        metric=metric,
        sizes=studies.proportional_sizes(args.end_proportion, args.n_steps, n_edges),
        n_random=args.n_random,
        curves=args.methods,
        batch_size=args.eval_batch_size,
        total_edges=True,
    )


if __name__ == "__main__":
    eap_circuits.run(main)
