"""How far a task's circuit can be trusted: error bars, stability, areas and verdicts.

Scores edges on every other pair of the task, with 50 resamples of these pairs in the same run, and
measures areas and verdicts on the pairs between them. Writes four tables, whose names begin with
results/stability/<model>/csv/<task>: .csv (how alike the resamples' circuits are, beside chance and
a null task), _edges.csv (how often each edge is in them), _areas.csv and _verdicts.csv.
"""

from eap.data.dataset import load_dataset
from eap.data.tasks import TASKS, get_task
from eap.errors import UserError
from eap.model.loading import load_model
from eap.runtime import distributed
from eap.studies import shell
from eap.studies.paths import shown, table_file
from eap.studies.provenance import write_table
from eap.studies.stability import stability_study


def main() -> None:
    """Run the experiment that the command line describes."""
    parser = shell.make_parser(__doc__)
    parser.add_argument("--metric", help="logit_diff, prob_diff, ... (default: the task's own)")
    parser.add_argument("--method", default="EAP-IG", help="how edges are scored")
    parser.add_argument("--ig_steps", type=shell.positive, default=5, help="points of EAP-IG")
    parser.add_argument("--sizes", type=shell.positive, nargs="+", help="of circuits (default: "
                        "1, 2, 5 and 10%% of all edges)")  # fmt: skip
    parser.add_argument("--n_resamples", type=shell.positive, default=50, help="of the pairs")
    parser.add_argument(
        "--n_random", type=shell.positive, default=50, help="random circuits to compare with"
    )
    args = parser.parse_args()
    if args.data is None:
        get_task(args.task)  # an unknown task is said before a model is loaded
    metric = args.metric or (TASKS[args.task].metric if args.task in TASKS else "logit_diff")
    if args.n_resamples < 2:
        raise UserError("--n_resamples: at least 2 can be compared")

    model = load_model(args.model, device=args.device, dtype=args.dtype, device_map=args.device_map)
    dataset = load_dataset(
        args.task, model.tokenizer, data=args.data, head=args.head, seed=args.seed,
        prepend_bos=args.prepend_bos,
    )  # fmt: skip
    shell.say(dataset.summary())
    study = stability_study(
        model, dataset, metric=metric, method=args.method, steps=args.ig_steps, sizes=args.sizes,
        n_resamples=args.n_resamples, n_random=args.n_random, seed=args.seed,
        expanded_kv=args.expanded_kv, batch_size=args.batch_size, memory_budget=args.memory,
        quiet=False,
    )  # fmt: skip

    origin = study.stability.graph.provenance | {
        "n_resamples": args.n_resamples, "n_random": args.n_random, "seed": args.seed,
    }  # fmt: skip
    for suffix, frame in study.tables().items():
        path = table_file(args.output, "stability", args.model, f"{args.task}{suffix}")
        if distributed.is_first():
            write_table(frame, path, origin)
        shell.say(f"wrote {shown(path)}")
    n_found, n_measured = len(study.found_on), len(study.measured_on)
    shell.say(f"\n{args.method} by {metric}, scored on {n_found} pairs, {args.n_resamples} times:")
    shell.say(study.stability.to_frame().round(3).to_string(index=False))
    shell.say(f"\nareas, on {n_measured} other pairs (95% over examples): {study.areas}")
    circuit = study.verdicts.circuit
    shell.say(f"\nverdicts on a circuit of {circuit.count_edges()} edges, on the same:")
    shell.say(str(study.verdicts))


if __name__ == "__main__":
    shell.run(main)
