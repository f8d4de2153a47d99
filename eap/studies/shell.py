"""What the experiment scripts share: arguments, where files go, provenance, and how errors end."""

import argparse
import hashlib
import os
import platform
import shlex
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NoReturn

import pandas as pd
import torch

from eap.attribution import attribute
from eap.data.dataset import Dataset, load_dataset
from eap.data.tasks import PARETO_TASKS, TASKS, get_task
from eap.errors import UserError
from eap.graph.graph import Graph
from eap.methods import RULES
from eap.model.loading import Model, load_model
from eap.runtime import distributed
from eap.runtime.atomic import write_atomically

ROOT = Path(__file__).resolve().parents[2]

# A graph with more edges than this is kept as safetensors: its JSON would be over 50 MB.
JSON_EDGES = 500_000


# ---- arguments -----------------------------------------------------------------------------------


class OneLineParser(argparse.ArgumentParser):
    """An argument parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong, and exit with status 2."""
        fail(f"{message} (see {self.prog} --help)")


def make_parser(description: str | None, *, tasks: bool = False) -> argparse.ArgumentParser:
    """A parser with the arguments that every experiment has, for one task or for several."""
    parser = OneLineParser(
        description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add("-m", "--model", default="toy", help="toy, a Hugging Face directory, or a hub name")
    if tasks:
        add("--tasks", nargs="+", type=known_task, default=list(TASKS), help="tasks to work on")
    else:
        add("-t", "--task", default="ioi", help=f"one of {', '.join(TASKS)}, or a name of your own")
        add("--data", type=Path, help="a CSV of your own to use instead of the task's")
    add(
        "--prepend_bos",
        action=argparse.BooleanOptionalAction,
        help="begin prompts with the BOS token (default: if the tokenizer has one)",
    )
    add("--head", type=positive, help="use only this many pairs of the task (default: all)")
    add("--batch_size", type=positive, help="pairs at a time (default: what the memory allows)")
    add("--seed", type=int, default=0, help="of drawn data and random circuits")
    add("--device", help="cpu, cuda, cuda:1, mps (default: the fastest there is)")
    add("--device_map", help="layers on several devices instead: auto, balanced, sequential")
    add("--dtype", default="float32", help="of the weights: float32, bfloat16, float16, float64")
    add("--memory", type=gigabytes, metavar="GB", help="budget beside the weights (default: half)")
    add(
        "--expanded_kv",
        action="store_true",
        help="one k and v per query head where heads share them, as earlier work has it",
    )
    add("--output", type=folder, default=ROOT, help="folder in which results/ and graphs/ are made")
    add("--overwrite", action="store_true", help="do not reuse finished graphs")
    return parser


def add_ig_arguments(parser: argparse.ArgumentParser, *, steps: bool = True) -> None:
    """The arguments of integrated gradients."""
    if steps:
        parser.add_argument("--ig_steps", type=positive, default=5, help="points of EAP-IG")
    parser.add_argument("--ig_rule", choices=RULES, default="paper", help="rule of integration")


def figure_parser(
    description: str | None, *, tasks: Sequence[str] = PARETO_TASKS, sizes: bool = False
) -> argparse.ArgumentParser:
    """A parser with the arguments that every figure script has, and `--linear` for sizes."""
    parser = OneLineParser(
        description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add("-m", "--model", default="toy", help="the model whose results to draw")
    add("--tasks", nargs="+", default=list(tasks), help="those present are drawn")
    add("--output", type=folder, default=ROOT, help="folder with results/ and graphs/")
    if sizes:
        add(
            "--linear",
            action="store_true",
            help="linear axes of sizes, as in the paper (default: logarithmic where most sizes "
            "would crowd at the left)",
        )
    return parser


def positive(text: str) -> int:
    """A whole number of at least 1."""
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return number


def not_negative(text: str) -> int:
    """A whole number of at least 0."""
    return 0 if text.strip() == "0" else positive(text)


def known_task(text: str) -> str:
    """The name of a task."""
    try:
        return get_task(text).name
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def folder(text: str) -> Path:
    """A folder that is there and can be written to, or can be made."""
    path = Path(text).expanduser()
    there = next(own for own in (path, *path.absolute().parents) if own.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise argparse.ArgumentTypeError(f"{there} is not a folder that can be written to")
    return path


def gigabytes(text: str) -> int:
    """A number of gigabytes, in bytes."""
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if number <= 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of gigabytes above 0")
    return int(number * 2**30)


# ---- running a script ----------------------------------------------------------------------------


def run(main: Callable[[], None]) -> None:
    """Run a script's `main`: alone or as one of `torchrun`'s processes; errors end in one line."""
    # A plain `kill` ends like Ctrl-C: temporary files are removed on the way out.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        distributed.start()
        main()
    except UserError as error:
        fail(str(error))
    except KeyboardInterrupt:
        fail(
            "interrupted; finished files are whole, and exact patching goes on where it was with "
            "the same command",
            status=130,
        )
    except (MemoryError, torch.OutOfMemoryError):
        fail("out of memory; give a smaller --memory or --batch_size", status=1)
    except BrokenPipeError:  # the reader of our output is gone
        os._exit(1)
    except OSError as error:
        if error.filename is None:
            raise
        fail(f"{error.strerror}: {error.filename}", status=1)
    except RuntimeError as error:
        if distributed.count() == 1 or "onnect" not in str(error):
            raise
        fail("another process ended, so this run cannot go on", status=1)
    finally:
        distributed.stop()


def fail(message: str, status: int = 2) -> NoReturn:
    """Print one line to standard error (once, if several processes fail) and exit."""
    if distributed.is_first_to_fail():
        where = f" (process {distributed.rank()})" if distributed.count() > 1 else ""
        print(f"error{where}: {' '.join(message.split())}", file=sys.stderr, flush=True)
    sys.exit(status)


def say(message: str = "") -> None:
    """Print, from the first process only."""
    if distributed.is_first():
        print(message, flush=True)


def duration(seconds: float) -> str:
    """A time as a person says it."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


# ---- what a run works with -----------------------------------------------------------------------


def load(args: argparse.Namespace) -> tuple[Model, Dataset]:
    """The model and the data that the arguments name."""
    if args.data is None:
        get_task(args.task)  # an unknown task is said before a model is loaded
    model = load_model_of(args)
    return model, load_task(args, model, args.task)


def load_model_of(args: argparse.Namespace) -> Model:
    """The model that the arguments name."""
    return load_model(args.model, device=args.device, dtype=args.dtype, device_map=args.device_map)


def load_task(args: argparse.Namespace, model: Model, task: str) -> Dataset:
    """The data of one task, for a model."""
    dataset = load_dataset(
        task,
        model.tokenizer,
        path=getattr(args, "data", None),
        head=args.head,
        seed=args.seed,
        prepend_bos=args.prepend_bos,
    )
    say(dataset.summary())
    return dataset


def load_tasks(args: argparse.Namespace, model: Model) -> dict[str, Dataset]:
    """The data of the tasks that the arguments name; says which cannot be posed to this model.

    Raises:
        UserError: none can.
    """
    datasets = {}
    for task in args.tasks:
        try:
            datasets[task] = load_task(args, model, task)
        except UserError as error:
            say(f"left out: {error}")
    if not datasets:
        raise UserError(f"none of {', '.join(args.tasks)} can be posed to {model.name}")
    return datasets


def whole_graph(args: argparse.Namespace, model: Model) -> Graph:
    """The model's graph, in the form that the arguments ask for."""
    return Graph.from_model(model, expanded_kv=args.expanded_kv)


def default_metric(task: str) -> str:
    """The metric of the Pareto study for a task; a task of one's own has `logit_diff`."""
    return get_task(task).metric if task in TASKS else "logit_diff"


def provenance(model: Model, dataset: Dataset, **settings: Any) -> dict[str, Any]:
    """Where a result comes from; `command` and `versions` are told apart from what must match."""
    return {
        "model": {"name": model.name, **model.source, "dtype": str(model.dtype)},
        "task": dataset.task,
        "data": dataset.provenance,
        **settings,
        "versions": {"python": platform.python_version()}
        | {name: _version(name) for name in ("eap", "torch", "transformer_lens", "transformers")},
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
    }


def code_hash() -> str:
    """A hash of the package's sources: results of changed code are not mixed with earlier ones."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parents[1].rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def matches(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    """Whether two provenances are of the same result, whatever command and versions made it."""
    ignored = {"command", "versions"}

    def key(of: Mapping[str, Any]) -> str:
        return repr(
            sorted((name, _plain(value)) for name, value in of.items() if name not in ignored)
        )

    return key(found) == key(wanted)


def _plain(value: Any) -> Any:
    """As JSON has it: tuples are lists, and the order of keys does not matter."""
    if isinstance(value, Mapping):
        return sorted((str(name), _plain(own)) for name, own in value.items())
    if isinstance(value, list | tuple):
        return [_plain(own) for own in value]
    return value


# ---- files ---------------------------------------------------------------------------------------


def graph_path(args: argparse.Namespace, model: Model, name: str) -> Path:
    """`graphs/<model>/<name>.json`; `.safetensors` for graphs of more than half a million edges."""
    large = Graph.from_config(model.config).n_edges > JSON_EDGES
    folder = args.output / "graphs" / model.short_name
    return folder / f"{name}{'.safetensors' if large else '.json'}"


def csv_path(args: argparse.Namespace, study: str, model: Model, name: str) -> Path:
    """`results/<study>/<model>/csv/<name>.csv`."""
    return args.output / "results" / study / model.short_name / "csv" / f"{name}.csv"


def save_csv(frame: pd.DataFrame, path: Path, *, index: bool = False) -> None:
    """Write a table whole or not at all (from the first process), and say where."""
    if distributed.is_first():
        with write_atomically(path) as temporary:
            frame.to_csv(temporary, index=index)
        say(f"wrote {shown(path)}")


def shown(path: Path) -> str:
    """A path as a person wants to read it: relative to the working directory if below it."""
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def attributed(
    args: argparse.Namespace,
    model: Model,
    dataset: Dataset,
    *,
    path: Path,
    method: str,
    metric: str,
    steps: int = 5,
    rule: str = "paper",
) -> Graph:
    """The graph at `path` if it is of the same provenance; else score it and save it there."""
    ig = {"steps": steps, "rule": rule} if method == "EAP-IG" else {}
    wanted = provenance(
        model, dataset, method=method, metric=metric, expanded_kv=args.expanded_kv, **ig
    )
    if (found := reusable(path, wanted, overwrite=args.overwrite)) is not None:
        return found
    graph = attribute(
        model,
        dataset,
        method=method,
        metric=metric,
        steps=steps,
        rule=rule,
        batch_size=args.batch_size,
        memory_budget=args.memory,
        expanded_kv=args.expanded_kv,
        quiet=False,
    )
    graph = replace(graph, provenance=wanted)
    save_graph(graph, path)
    return graph


def reusable(path: Path, wanted: Mapping[str, Any], *, overwrite: bool) -> Graph | None:
    """The finished graph at `path`, if it is of the wanted provenance; says so, or why not."""
    if overwrite or not path.exists():
        return None
    graph = Graph.load(path)
    if not matches(graph.provenance, wanted):
        differing = [
            name
            for name in wanted
            if name not in ("command", "versions")
            and _plain(graph.provenance.get(name)) != _plain(wanted[name])
        ]
        say(f"making {shown(path)} anew: the one there has another {', '.join(differing)}")
        return None
    say(f"reusing {shown(path)} (--overwrite makes it anew)")
    return graph


def save_graph(graph: Graph, path: Path) -> None:
    """Write a graph (from the first process), and say where."""
    if distributed.is_first():
        graph.save(path)
        say(f"wrote {shown(path)}")
    distributed.wait_for_all()
