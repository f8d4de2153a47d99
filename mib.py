"""One cell of MIB's circuit track: CPR, CMD and the accuracy area of a method on a task.

Scores edges (or nodes) on the train split, measures circuits of .1 to 100% of all edges on the test
split, and prints the areas next to the published values for the same model and task. Default
settings are those of the benchmark. Several methods give one ranking, by the mean of their scores.
Writes results/mib/<model>/csv/<task>_<method>_{curves,areas}.csv and
graphs/<model>/mib_<task>_<method>.json; with --submission, also writes files in the leaderboard's
layout.
"""

import argparse
from pathlib import Path

import eap_circuits

# isort: split
import eap
from eap import studies
from eap.data.collections.mib import MIB_TASKS, SPLITS, check_source
from eap.engine.recipe import LOSSES, SIZES, Recipe
from eap.methods import METHODS, RULES, get_method
from eap.runtime import processes
from eap.runtime.ranges import RANGES
from eap.studies import shell
from eap.studies.paths import ROOT, graph_file, shown, table_file

NAMED = ("ig_steps", "learning_rate", "learning_steps", "seed", "split")
"""Options that file names have if they are not the defaults, besides the methods' own."""


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    parser = shell.OneLineParser(description=__doc__, formatter_class=shell.DefaultsOnce)
    add = parser.add_argument
    shell.add_model_arguments(parser)
    add("-t", "--task", choices=MIB_TASKS, default="ioi", help="task of the benchmark")
    methods = [*METHODS, "MAttr"]
    add("--method", choices=methods, nargs="+", default=["EAP-IG"], help="scoring methods")
    add(
        "--mean",
        choices=("raw", "scaled"),
        default="raw",
        help="scores to average for several methods: raw, or scaled to unit mean magnitude",
    )
    add("--level", choices=("edge", "node"), default="edge", help="whether to rank edges or nodes")
    add("--source", help="folder with a copy of the data set, or CSV of pairs (default: hub)")
    add("--split", choices=SPLITS, default="test", help="split for measuring circuits")
    add(
        "--n_train",
        type=shell.number_of("head"),
        help="number of pairs for scoring (default: 1,000 for ioi, otherwise 100)",
    )
    add(
        "--head",
        type=shell.number_of("head"),
        help="number of pairs for measuring circuits (default: all)",
    )
    add(
        "--ig_steps",
        type=shell.number_of("steps"),
        default=5,
        help="number of integration points, for methods that integrate",
    )
    add(
        "--rule",
        choices=RULES,
        help="integration rule (default: the benchmark's rule for the method)",
    )
    add("--optimizer", choices=("adam", "sgd"), default="adam", help="optimizer of MAttr")
    add(
        "--learning_rate",
        type=shell.Number(RANGES["learning_rate"], float, "a learning rate"),
        help="learning rate of MAttr (default: .05 for adam, 3 for sgd)",
    )
    add("--sizes", choices=SIZES, default="uniform", help="distribution of circuit sizes in MAttr")
    add("--loss", choices=LOSSES, default="metric", help="loss of MAttr")
    add(
        "--learning_steps",
        type=shell.number_of("learning_steps"),
        help="optimizer steps of MAttr (default: 5,000 for edges, 500 for nodes)",
    )
    add(
        "--free_input",
        action="store_true",
        help="keep the input node in every circuit of nodes, without counting it",
    )
    add(
        "--seed",
        type=shell.number_of("seed"),
        default=0,
        help="random seed of MAttr and of the bootstrap over examples",
    )
    shell.add_machine_arguments(parser)
    add("--output", type=shell.output_folder, default=ROOT, help="folder for results/ and graphs/")
    add("--submission", type=shell.folder, help="also write <task>_<model>/ into this folder")
    add(
        "--files", choices=("one", "nine"), default="one",
        help="files to submit: one file of scores, or nine circuits of .1 to 50%% of all edges",
    )  # fmt: skip
    add(
        "--by",
        choices=("helpful", "magnitude"),
        default="helpful",
        help="ranking by which the nine circuits are selected",
    )
    return parser


def main() -> None:
    """Run the experiment that the command line describes."""
    parser = make_parser()
    args = parser.parse_args()
    check_options(parser, args)
    settings = studies.Settings(
        model=args.model, revision=args.revision, device=args.device, device_map=args.device_map,
        dtype=args.dtype, output=args.output,
    )  # fmt: skip
    check_source(args.source)  # before the slow loading of the model
    recipe = Recipe(
        steps=args.learning_steps, loss=args.loss, optimizer=args.optimizer,
        learning_rate=args.learning_rate, k=args.sizes, seed=args.seed,
    )  # fmt: skip
    model = studies.load_model_of(settings)
    train, test = studies.load_mib_splits(
        args.task, model.tokenizer, source=args.source, split=args.split, n_train=args.n_train,
        head=args.head,
    )  # fmt: skip
    resources = {"batch_size": args.batch_size, "memory_budget": args.memory, "quiet": False}
    graph = studies.mib_ranking(
        model, train, method=args.method, level=args.level, steps=args.ig_steps, rule=args.rule,
        recipe=recipe, scaled=args.mean == "scaled", **resources,
    )  # fmt: skip
    areas = eap.areas(
        model, graph, test, level=args.level, rank_input=ranks_input(args), seed=args.seed,
        **resources,
    )  # fmt: skip
    studies.keep_folders(settings, model)
    name = f"{args.task}_{method_name(args)}" + ("_nodes" if args.level == "node" else "")
    save(args, name, graph, areas)
    method = graph.provenance["method"]
    chosen = graph.provenance.get("settings") or {}
    described = ", ".join(f"{name} {value}" for name, value in chosen.items())
    shell.say(
        f"\n{method} on {args.task}, {args.model}{f' ({described})' if described else ''}: scored "
        f"on {len(train)} pairs, measured on {len(test)}; {areas.n_ranked:,} {args.level}s; 95% "
        "over examples:"
    )
    say_areas(args, areas)


def ranks_input(args: argparse.Namespace) -> bool:
    """Whether the input is ranked among the nodes, as in the benchmark."""
    return args.level == "node" and not args.free_input


def method_name(args: argparse.Namespace) -> str:
    """Name the methods, and the settings that are not the defaults, for use in file names."""
    words = [f"mean-{args.mean}"] if len(args.method) > 1 else []
    words += args.method
    if "MAttr" in args.method:
        words += [args.optimizer, args.sizes, args.loss]
    words += [args.rule] if args.rule else []
    words += ["free-input"] if args.free_input else []
    usual = make_parser().parse_args([])
    for name in NAMED:
        if (value := getattr(args, name)) != getattr(usual, name):
            words.append(f"{name.replace('_', '-')}-{value}")
    return "_".join(words)


def check_options(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Refuse options that would change nothing."""
    methods = [get_method(name) for name in args.method if name != "MAttr"]
    if args.free_input and args.level == "edge":
        parser.error("--free_input is about nodes: add --level node")
    if args.rule and not any(method.integrates and method.uses_rule for method in methods):
        parser.error(f"--rule: {' and '.join(args.method)} has no integration rule to choose")
    if args.submission is None and args.files == "nine":
        parser.error("--files nine needs --submission")
    integrates = any(method.integrates for method in methods)
    for names, has_use, needed in (
        (("loss", "optimizer", "learning_rate", "learning_steps", "sizes"),
         "MAttr" in args.method, "--method MAttr"),
        (("ig_steps",), integrates, "a method that integrates"),
        (("mean",), len(args.method) > 1, "several methods"),
        (("by",), args.files == "nine", "--files nine"),
    ):  # fmt: skip
        for name in names:
            if not has_use and getattr(args, name) != parser.get_default(name):
                parser.error(f"--{name} changes nothing without {needed}")


def save(args: argparse.Namespace, name: str, ranking: "eap.Graph", areas: "eap.Areas") -> None:
    """Write the curves, the areas, the ranking, and the submission if there is one."""
    for kind, frame in (("curves", areas.to_frame()), ("areas", areas.summary())):
        path = table_file(args.output, "mib", args.model, f"{name}_{kind}")
        studies.save_csv(frame, path, areas.provenance)
    if not processes.is_first():
        return
    graph = graph_file(args.output, args.model, f"mib_{name}", n_edges=ranking.n_edges)
    ranking.save(graph)
    shell.say(f"wrote {shown(graph)}; to view the graph: eap view {shown(graph)}")
    if args.submission is not None:
        circuits = []
        if args.files == "nine":
            circuits = studies.submitted_circuits(
                ranking, by=args.by, level=args.level, rank_input=ranks_input(args)
            )
        paths = studies.submit(
            ranking, Path(args.submission), args.task, args.model, circuits=circuits
        )
        shell.say(f"wrote {', '.join(map(shown, paths))} for the leaderboard")


def say_areas(args: argparse.Namespace, areas: "eap.Areas") -> None:
    """Print the measured areas, then the published ones."""
    shell.say(f"  CPR       {areas.cpr}   (a value above 1 means overshoot)")
    shell.say(f"  CMD       {areas.cmd}   (0 is best)")
    shell.say(f"  accuracy  {areas.accuracy}   (over log size, 1 is best)")
    published = studies.published_cells(args.task, args.model)
    if published.empty:
        return
    shell.say("\npublished for this model and task (not measured here; NaN: not reported):")
    notes = [note for note in dict.fromkeys(published["differs"]) if note]
    marks = {note: f"[{number}]" for number, note in enumerate(notes, start=1)}
    table = published.drop(columns=["read_in", "differs"])
    table["differs"] = [marks.get(note, "") for note in published["differs"]]
    shell.say(table.to_string(index=False))
    for note, mark in marks.items():
        shell.say(f"{mark} {note}")
    for source in published["read_in"].unique():
        shell.say(f"read in: {source}")


if __name__ == "__main__":
    eap_circuits.run(main)
