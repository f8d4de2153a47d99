"""One cell of MIB's circuit track: CPR, CMD and the accuracy area of a method on a task.

Scores edges (or nodes) on the train split, measures circuits of .1 to 100% on the test split, and
prints and saves the areas, beside what has been published for that model and task.
Writes results/mib/<model>/csv/<task>_<method>_{curves,areas}.csv and
graphs/<model>/mib_<task>_<method>.json; --submission also writes the leaderboard's layout.
"""

import argparse
from pathlib import Path

import eap_circuits
from eap import studies
from eap.data.collections.mib import MIB_TASKS, SPLITS, check_source
from eap.methods import METHODS
from eap.runtime import processes
from eap.studies import shell
from eap.studies.paths import ROOT, graph_file, shown, table_file


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = shell.OneLineParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add("-m", "--model", default="toy", help="toy, a Hugging Face directory, or a hub name")
    add("-t", "--task", choices=MIB_TASKS, default="ioi", help="of the benchmark")
    add("--method", choices=METHODS, default="EAP-IG", help="how edges are scored")
    add("--level", choices=("edge", "node"), default="edge", help="what is ranked")
    add("--source", help="a folder with a copy of the data set, or a CSV of pairs (default: hub)")
    add("--split", choices=SPLITS, default="test", help="on which circuits are measured")
    add("--n_train", type=shell.positive, help="pairs to score on (default: 1,000 of ioi, or 100)")
    add("--head", type=shell.positive, help="measure on only this many pairs (default: all)")
    add("--ig_steps", type=shell.number_of_steps, default=5, help="of methods that integrate")
    add("--seed", type=shell.seed, default=0, help="of the bootstrap over examples")
    add("--batch_size", type=shell.positive, help="pairs at a time (default: what memory allows)")
    add("--device", help="cpu, cuda, cuda:1, mps (default: the fastest there is)")
    add("--device_map", help="layers on several devices instead: auto, balanced, sequential")
    add("--dtype", default="float32", help="of the weights: float32, bfloat16, float16, float64")
    add("--memory", type=shell.gigabytes, metavar="GB", help="beside the weights (default: half)")
    add("--output", type=shell.output_folder, default=ROOT, help="folder of results/ and graphs/")
    add("--submission", type=shell.folder, help="also write <task>_<model>/ into this folder")
    return parser


def main() -> None:
    """Run the experiment that the command line describes."""
    args = make_parser().parse_args()
    settings = studies.Settings(
        model=args.model, device=args.device, device_map=args.device_map, dtype=args.dtype,
        output=args.output,
    )  # fmt: skip
    check_source(args.source)  # before the model, which takes long
    model = studies.load_model_of(settings)
    result = studies.mib_study(
        model,
        args.task,
        method=args.method,
        level=args.level,
        source=args.source,
        split=args.split,
        n_train=args.n_train,
        head=args.head,
        steps=args.ig_steps,
        seed=args.seed,
        batch_size=args.batch_size,
        memory_budget=args.memory,
        quiet=False,
    )
    name = f"{args.task}_{args.method}" + ("_nodes" if args.level == "node" else "")
    save(args, name, result)
    say_areas(args, result)


def save(args: argparse.Namespace, name: str, result: "studies.MibResult") -> None:
    """Write curves, areas, the ranking, and what is submitted."""
    for kind, frame in (("curves", result.areas.to_frame()), ("areas", result.areas.summary())):
        path = table_file(args.output, "mib", args.model, f"{name}_{kind}")
        studies.save_csv(frame, path, result.areas.provenance)
    if not processes.is_first():
        return
    graph = graph_file(args.output, args.model, f"mib_{name}", n_edges=result.graph.n_edges)
    result.graph.save(graph)
    shell.say(f"wrote {shown(graph)}; look at it with: eap view {shown(graph)}")
    if args.submission is not None:
        path = studies.submit(result.graph, Path(args.submission), args.task, args.model)
        shell.say(f"wrote {shown(path)} for the leaderboard")


def say_areas(args: argparse.Namespace, result: "studies.MibResult") -> None:
    """Print the areas, and the published ones."""
    areas = result.areas
    shell.say(
        f"\n{args.method} on {args.task}, {args.model}: scored on {len(result.train)} pairs, "
        f"measured on {len(result.test)}; {areas.n_ranked:,} {args.level}s; 95% over examples:"
    )
    shell.say(f"  CPR       {areas.cpr}   (a value above 1 means overshoot)")
    shell.say(f"  CMD       {areas.cmd}   (0 is best)")
    shell.say(f"  accuracy  {areas.accuracy}   (over log size, 1 is best)")
    published = studies.published_cells(args.task, args.model)
    if len(published):
        shell.say("\npublished for this model and task (not measured here; NaN: not reported):")
        shell.say(published.to_string(index=False))
        for note in studies.differences_from_benchmark(args.method, args.level, args.model):
            shell.say(f"not the benchmark's: {note}")


if __name__ == "__main__":
    eap_circuits.run(main)
