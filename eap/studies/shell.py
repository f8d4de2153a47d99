"""The command line: arguments, running a script, and how it ends. Loads no torch.

Only this module and the scripts know argparse; the library takes `Settings`.
"""

import argparse
import gc
import io
import math
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from eap import runtime
from eap.data.reading import find_file
from eap.data.tasks import PARETO_TASKS, TASKS, get_task
from eap.methods import RULES
from eap.runtime import processes
from eap.runtime.errors import UserError, quoted
from eap.runtime.home import from_home
from eap.runtime.interrupts import end_between_imports
from eap.runtime.progress import duration, say
from eap.runtime.ranges import COUNT, RANGES, Range
from eap.studies.paths import ROOT, check_folders, shown, task_name
from eap.studies.provenance import save_csv
from eap.studies.settings import Settings

__all__ = [
    "ROOT", "DefaultsOnce", "OneLineParser", "add_ig_arguments", "add_size_arguments", "duration",
    "fail", "figure_parser", "folder", "gigabytes", "make_parser", "not_negative",
    "number_of", "output_folder", "positive", "run", "save_csv", "say", "settings_of",
    "share", "shown",
]  # fmt: skip

T = TypeVar("T")

# No machine has more memory than this.
MOST_GIGABYTES = 2**20

LONGEST_NUMBER = 30
"""Characters; a longer text is no number that anybody means."""


# ---- arguments -----------------------------------------------------------------------------------


class DefaultsOnce(argparse.ArgumentDefaultsHelpFormatter):
    """Help that says the default of an option once, and none where there is none."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        nothing = action.default is None or action.default is False or action.default in ("", [])
        if nothing or "(default" in (action.help or ""):
            return action.help
        return super()._get_help_string(action)


class OneLineParser(argparse.ArgumentParser):
    """An argument parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong, and exit with status 2; of long words only how they begin."""
        words = [word if len(word) <= 80 else f"{word[:77]}..." for word in message.split()]
        fail(f"{' '.join(words)[:300]} (see {self.prog[:40]} --help)")

    def print_help(self, file: Any = None) -> None:
        """Print the help; an output that takes nothing is an error, as everywhere."""
        print(self.format_help(), end="", file=file or sys.stdout, flush=True)


def make_parser(description: str | None, *, tasks: bool = False) -> argparse.ArgumentParser:
    """A parser with the arguments that every experiment has, for one task or for several."""
    parser = OneLineParser(description=description, formatter_class=DefaultsOnce)
    add = parser.add_argument
    add_model_arguments(parser)
    if tasks:
        add("--tasks", nargs="+", type=known_task, default=list(TASKS), help="tasks to work on")
    else:
        add(
            "-t", "--task", type=named_task, default="ioi",
            help=f"one of {', '.join(TASKS)}, or a name of your own",
        )  # fmt: skip
        add("--data", type=data_file, help="pairs of your own to use instead of the task's")
        add(
            "--drop_unfit",
            action="store_true",
            help="leave out rows of --data that do not fit the tokenizer (default: an error)",
        )
    add(
        "--prepend_bos",
        action=argparse.BooleanOptionalAction,
        help="begin prompts with the BOS token (default: if the tokenizer has one)",
    )
    head, batch_size, seed = (number_of(name) for name in ("head", "batch_size", "seed"))
    add("--head", type=head, help="use only this many pairs of the task (default: all)")
    add("--batch_size", type=batch_size, help="pairs at a time (default: what the memory allows)")
    add("--seed", type=seed, default=0, help="random seed of generated data and random circuits")
    add("--device", help="cpu, cuda, cuda:1, mps (default: the fastest there is)")
    add("--device_map", help="layers on several devices instead: auto, balanced, sequential")
    add(
        "--dtype",
        default="float32",
        help="data type of the weights: float32, bfloat16, float16, float64",
    )
    add("--memory", type=gigabytes, metavar="GB", help="budget beside the weights (default: half)")
    add(
        "--expanded_kv",
        action="store_true",
        help="one k and v per query head where heads share them, as earlier work has it",
    )
    add(
        "--output",
        type=output_folder,
        default=ROOT,
        help="folder in which results/ and graphs/ are made",
    )
    add("--overwrite", action="store_true", help="do not reuse finished graphs")
    return parser


def add_model_arguments(
    parser: argparse.ArgumentParser,
    *,
    default: str | None = "toy",
    what: str = "toy, a directory, a GGUF file, or a hub name",
) -> None:
    """The model, and which revision of one of the hub."""
    parser.add_argument("-m", "--model", default=default, help=what)
    parser.add_argument(
        "--revision", help="branch, tag or commit of a model of the hub (default: main)"
    )


def add_size_arguments(parser: argparse.ArgumentParser) -> None:
    """The sizes of circuits that a curve has."""
    add = parser.add_argument
    add("--end", type=positive, default=1001, help="sizes go from 30 to below this")
    add("--sizes", type=positive, nargs="+", metavar="N", help="these sizes instead, in edges")


def add_ig_arguments(parser: argparse.ArgumentParser, *, steps: bool = True) -> None:
    """The arguments of integrated gradients."""
    add = parser.add_argument
    if steps:
        add("--ig_steps", type=number_of("steps"), default=5, help="points of EAP-IG")
    add("--ig_rule", choices=RULES, default="paper", help="rule of integration")


def figure_parser(
    description: str | None, *, tasks: Sequence[str] = PARETO_TASKS, sizes: bool = False
) -> argparse.ArgumentParser:
    """A parser with the arguments that every figure script has, and `--linear` for sizes."""
    parser = OneLineParser(description=description, formatter_class=DefaultsOnce)
    add = parser.add_argument
    add("-m", "--model", default="toy", help="the model whose results to draw")
    add("--tasks", nargs="+", type=named_task, default=list(tasks), help="those present are drawn")
    add("--output", type=output_folder, default=ROOT, help="folder with results/ and graphs/")
    if sizes:
        add(
            "--linear",
            action="store_true",
            help="linear axes of sizes, as in the paper (default: logarithmic where most sizes "
            "would crowd at the left)",
        )
    return parser


def settings_of(args: argparse.Namespace) -> Settings:
    """What the arguments of `make_parser` ask for, as the library takes it."""
    given = vars(args)
    names = {field.name for field in fields(Settings)} & set(given)
    tasks = tuple(given["tasks"]) if "tasks" in given else (given["task"],)
    return Settings(**{name: given[name] for name in names - {"tasks"}}, tasks=tasks)


# ---- kinds of arguments --------------------------------------------------------------------------


@dataclass(frozen=True)
class Number:
    """A number of some range as the type of an option.

    Attributes:
        within: the range (see `eap.runtime.ranges`).
        kind: `int` or `float`.
        what: what the number is, for the message.
    """

    within: Range
    kind: type[int] | type[float] = int
    what: str = "a whole number"

    def __call__(self, text: str) -> Any:
        """The number that a text is; one out of range is refused with the range."""
        try:
            number = self.kind(text) if len(text) <= LONGEST_NUMBER else math.nan
        except ValueError:
            number = math.nan
        if number not in self.within:
            raise argparse.ArgumentTypeError(f"{quoted(text, 60)} is not {self.what} {self.within}")
        return number


def number_of(name: str) -> Number:
    """The type of an option that is given to the argument of this name, whose range it has."""
    return Number(RANGES[name])


positive = Number(COUNT)
"""A count of at least 1."""

not_negative = Number(Range(0, COUNT.most))
"""A count that may be 0."""

share = Number(Range(0, 1, above=True), float, "a share")

seconds = Number(Range(0, 10**9), float, "a number of seconds")


def gigabytes(text: str) -> int:
    """A number of gigabytes, in bytes."""
    within = Range(0, MOST_GIGABYTES, above=True)
    return math.ceil(Number(within, float, "a number of gigabytes")(text) * 2**30)


def known_task(text: str) -> str:
    """The name of one of the package's tasks."""
    return _checked(lambda: get_task(text).name)


def named_task(text: str) -> str:
    """A name that files can have."""
    return _checked(lambda: task_name(text))


def data_file(text: str) -> Path:
    """A file of pairs that is there."""
    return _checked(lambda: find_file(text))


def folder(text: str) -> Path:
    """A folder that is there and can be written to, or can be made."""
    path = from_home(text)
    try:
        existing = next(
            parent for parent in (path, *path.absolute().parents) if os.path.lexists(parent)
        )
        path.exists()  # raises where the name is too long
        path.resolve()
        str(path).encode()  # names are written into files
    except (OSError, RuntimeError, ValueError, StopIteration):
        raise argparse.ArgumentTypeError(
            f"{quoted(text, 60)} is not the name of a folder"
        ) from None
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise argparse.ArgumentTypeError(f"{existing} is not a folder that can be written to")
    return path


def output_folder(text: str) -> Path:
    """A folder in which results/ and graphs/ are or can be made."""
    path = folder(text)
    _checked(lambda: check_folders(path))
    return path


def _checked(check: Callable[[], T]) -> T:
    try:
        return check()
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


# ---- running a script ----------------------------------------------------------------------------


def run(main: Callable[[], None]) -> None:
    """Run a script's `main`: alone or as one of `torchrun`'s processes; errors end in one line."""
    try:
        if sys.stdout is None:
            fail("standard output is closed; give it a file, or /dev/null", status=1)
        # Python searches for unused cycles among the half a million objects that the libraries of
        # models make and keep: a quarter of the time that loading them takes. Here, rarely.
        gc.set_threshold(100_000, 50, 100)
        _print_anything()
        if processes.expected() > 1:
            runtime.distributed.start()
        end_between_imports()
        main()
        sys.stdout.flush()
    except KeyboardInterrupt:
        fail(
            "interrupted; finished files are whole, and exact patching goes on where it was with "
            "the same command",
            status=130,
        )
    except BrokenPipeError:
        _close_output()
        fail("the reader of the output is gone", status=1)
    except Exception as error:
        message, status = explain(error)
        if message is None:
            raise
        fail(message, status)
    except SystemExit as end:
        _leave(end.code)
    if processes.count() > 1:
        runtime.distributed.stop()


def _print_anything() -> None:
    """Write what a terminal's encoding lacks as escapes: work is not lost for a letter."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def explain(error: Exception) -> tuple[str | None, int]:
    """One line for an error that a person can do something about, and the status to end with."""
    torch = sys.modules.get("torch")  # what is not loaded has not failed
    if isinstance(error, UserError):
        return str(error), 2
    if isinstance(error, processes.ProcessError):
        return str(error), 1
    if isinstance(error, MemoryError) or (torch and isinstance(error, torch.OutOfMemoryError)):
        return "out of memory; give a smaller --memory or --batch_size", 1
    if isinstance(error, OSError):
        place = error.filename
        if place is None:  # files say their names: it is what is printed to
            _close_output()
            place = "while writing to the output"
        return f"{error.strerror or error}: {place}", 1
    return None, 1


def fail(message: str, status: int = 2) -> NoReturn:
    """Print one line to standard error (once, if several processes fail) and exit."""
    several = processes.count() > 1
    if not several or runtime.distributed.is_first_to_fail():
        place = f" (process {processes.rank()})" if several else ""
        with suppress(OSError, ValueError):
            print(f"error{place}: {' '.join(message.split())}", file=sys.stderr, flush=True)
    _leave(status)


def _leave(status: object) -> NoReturn:
    """Exit; one of several at once, for the others may never come to where it would wait."""
    number = status if isinstance(status, int) else int(status is not None)
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except (OSError, ValueError) as error:
        _close_output()
        with suppress(OSError, ValueError):
            print(f"error: {error}: while writing to the output", file=sys.stderr, flush=True)
        number = number or 1
    if processes.count() > 1 and number:
        os._exit(number)
    sys.exit(number)


def _close_output() -> None:
    """Write what remains to nowhere: Python would try again when it ends, and say so."""
    with suppress(OSError, ValueError, AttributeError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
