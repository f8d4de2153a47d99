"""The command line: arguments, running a script, and exit status. Loads no torch.

Only this module and the scripts use argparse; the library takes `Settings`.
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
from eap.runtime.progress import say as say
from eap.runtime.ranges import COUNT, RANGES, Range
from eap.studies.paths import ROOT, check_folders, task_name
from eap.studies.paths import shown as shown
from eap.studies.provenance import save_csv as save_csv
from eap.studies.settings import CURVES, PAPER_CURVES, Settings

T = TypeVar("T")

# Upper limit of --memory, more than any machine has.
MOST_GIGABYTES = 2**20

LONGEST_NUMBER = 30
"""Maximum length, in characters, of a number on the command line."""


# ---- arguments -----------------------------------------------------------------------------------


class DefaultsOnce(argparse.ArgumentDefaultsHelpFormatter):
    """Help formatter that shows the default of an option once, and only if it has one."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        nothing = action.default is None or action.default is False or action.default in ("", [])
        if nothing or "(default" in (action.help or ""):
            return action.help
        if isinstance(action.default, list | tuple):  # as it is typed, not as Python writes it
            words = " ".join(map(str, action.default)).replace("%", "%%")
            return f"{action.help or ''} (default: {words})".strip()
        return super()._get_help_string(action)


class OneLineParser(argparse.ArgumentParser):
    """An argument parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        """Print the error with long words shortened, and exit with status 2."""
        words = [word if len(word) <= 80 else f"{word[:77]}..." for word in message.split()]
        fail(f"{' '.join(words)[:300]} (see {self.prog[:40]} --help)")

    def print_help(self, file: Any = None) -> None:
        """Print the help; unlike argparse, do not ignore a failure to write it."""
        print(self.format_help(), end="", file=file or sys.stdout, flush=True)


def make_parser(description: str | None, *, tasks: bool = False) -> argparse.ArgumentParser:
    """Make a parser with the arguments of every experiment, for one task or for several."""
    parser = OneLineParser(description=description, formatter_class=DefaultsOnce)
    add = parser.add_argument
    add_model_arguments(parser)
    if tasks:
        add("--tasks", nargs="+", type=known_task, default=list(TASKS), help="tasks to work on")
    else:
        add(
            "-t", "--task", type=named_task, default="ioi",
            help=f"one of {', '.join(TASKS)}, or any name for your own --data",
        )  # fmt: skip
        add("--data", type=data_file, help="file of your own pairs, to use instead of the task's")
        add(
            "--drop_unfit",
            action="store_true",
            help="skip rows of --data that do not fit the tokenizer (default: an error)",
        )
    add(
        "--prepend_bos",
        action=argparse.BooleanOptionalAction,
        help="begin prompts with the BOS token (default: only if the tokenizer has one)",
    )
    add("--head", type=number_of("head"), help="number of pairs to use per task (default: all)")
    seed = number_of("seed")
    add("--seed", type=seed, default=0, help="random seed of generated data and random circuits")
    add_machine_arguments(parser)
    add(
        "--expanded_kv",
        action="store_true",
        help="give each query head its own k and v where heads share them, as in earlier work",
    )
    add("--output", type=output_folder, default=ROOT, help="folder for results/ and graphs/")
    add("--overwrite", action="store_true", help="recompute finished graphs")
    return parser


def add_model_arguments(
    parser: argparse.ArgumentParser,
    *,
    default: str | None = "toy",
    what: str = "toy, a directory, a GGUF file, or a hub name",
) -> None:
    """Add the arguments for the model and, for a hub model, its revision."""
    parser.add_argument("-m", "--model", default=default, help=what)
    parser.add_argument("--revision", help="branch, tag or commit of a hub model (default: main)")


def add_machine_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments for where, and in how much memory, a model runs."""
    add = parser.add_argument
    batch_size = number_of("batch_size")
    add("--batch_size", type=batch_size, help="batch size in pairs (default: what memory allows)")
    add("--device", help="cpu, cuda, cuda:1, mps (default: the fastest available)")
    add("--device_map", help="split layers over several devices: auto, balanced, sequential")
    add(
        "--dtype",
        default="float32",
        help="data type of the weights: float32, bfloat16, float16, float64",
    )
    add(
        "--memory",
        type=gigabytes,
        metavar="GB",
        help="memory budget besides the weights (default: half of free memory)",
    )


def add_size_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments for the circuit sizes of a curve."""
    add = parser.add_argument
    add("--end", type=positive, default=1001, help="upper limit of circuit sizes, exclusive")
    sizes = "circuit sizes in edges (default: 30 to --end)"
    add("--sizes", type=positive, nargs="+", metavar="N", help=sizes)


def add_curve_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments for the curves of the Pareto study."""
    add, usual = parser.add_argument, list(PAPER_CURVES)
    add("--methods", nargs="+", choices=CURVES, default=usual, help="methods to compare")
    add("--metric", help="logit_diff, prob_diff, etc. (default: the task's metric)")
    add("--n_random", type=not_negative, default=5, help="number of random circuits per size")
    add_ig_arguments(parser)


def add_ig_arguments(parser: argparse.ArgumentParser, *, steps: bool = True) -> None:
    """Add the arguments of integrated gradients."""
    add = parser.add_argument
    if steps:
        add("--ig_steps", type=number_of("steps"), default=5, help="number of EAP-IG steps")
    add("--ig_rule", choices=RULES, default="paper", help="integration rule")


def figure_parser(
    description: str | None, *, tasks: Sequence[str] = PARETO_TASKS, sizes: bool = False
) -> argparse.ArgumentParser:
    """Make a parser with the arguments of every figure script; with `sizes`, also `--linear`."""
    parser = OneLineParser(description=description, formatter_class=DefaultsOnce)
    add = parser.add_argument
    add("-m", "--model", default="toy", help="model whose results are drawn")
    add("--tasks", nargs="+", type=named_task, default=list(tasks), help="tasks to draw")
    add("--output", type=output_folder, default=ROOT, help="folder with results/ and graphs/")
    if sizes:
        add(
            "--linear",
            action="store_true",
            help="draw linear size axes, as in the paper (default: logarithmic axes if most sizes "
            "would crowd at the left)",
        )
    return parser


def settings_of(args: argparse.Namespace) -> Settings:
    """Convert the arguments of `make_parser` to settings of the library."""
    given = vars(args)
    names = {field.name for field in fields(Settings)} & set(given)
    tasks = tuple(given["tasks"]) if "tasks" in given else (given["task"],)
    return Settings(**{name: given[name] for name in names - {"tasks"}}, tasks=tasks)


# ---- kinds of arguments --------------------------------------------------------------------------


@dataclass(frozen=True)
class Number:
    """Type of an option that takes a number in a range.

    Attributes:
        within: range of the number (see `eap.runtime.ranges`).
        kind: `int` or `float`.
        what: description of the number for error messages.
    """

    within: Range
    kind: type[int] | type[float] = int
    what: str = "a whole number"

    def __call__(self, text: str) -> Any:
        """Parse a number; an error names the range."""
        try:
            number = self.kind(text) if len(text) <= LONGEST_NUMBER else math.nan
        except ValueError:
            number = math.nan
        if number not in self.within:
            raise argparse.ArgumentTypeError(f"{quoted(text, 60)} is not {self.what} {self.within}")
        return number


def number_of(name: str) -> Number:
    """Type of an option, with the range of the library's argument of this name."""
    return Number(RANGES[name])


positive = Number(COUNT)
"""Type of a count of at least 1."""

not_negative = Number(Range(0, COUNT.most))
"""Type of a count of at least 0."""

share = Number(Range(0, 1, above=True), float, "a share")

seconds = Number(Range(0, 10**9), float, "a number of seconds")


def gigabytes(text: str) -> int:
    """Parse a number of gigabytes, and convert it to bytes."""
    within = Range(0, MOST_GIGABYTES, above=True)
    return math.ceil(Number(within, float, "a number of gigabytes")(text) * 2**30)


def parsed(parse: Callable[[str], T]) -> Callable[[str], T]:
    """Make the type of an option from a function; its `UserError` becomes an error of argparse."""

    def read(text: str) -> T:
        try:
            return parse(text)
        except UserError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return read


known_task = parsed(lambda text: get_task(text).name)
"""Type of an option that names one of the package's tasks."""

named_task = parsed(task_name)
"""Type of an option that names a task, by a name that is valid in file names."""

data_file = parsed(find_file)
"""Type of an option that names an existing file of pairs."""


@parsed
def folder(text: str) -> Path:
    """Parse the path of a folder that is writable or can be made."""
    path = from_home(text)
    try:
        existing = next(
            parent for parent in (path, *path.absolute().parents) if os.path.lexists(parent)
        )
        path.exists()  # raises where the name is too long
        path.resolve()
        str(path).encode()  # names are written into files
    except (OSError, RuntimeError, ValueError, StopIteration):
        raise UserError(f"{quoted(text, 60)} is not the name of a folder") from None
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise UserError(f"{existing} is not a folder that can be written to")
    return path


@parsed
def output_folder(text: str) -> Path:
    """Parse the path of a folder in which results/ and graphs/ exist or can be made."""
    path = folder(text)
    check_folders(path)
    return path


# ---- running a script ----------------------------------------------------------------------------


def run(main: Callable[[], None]) -> None:
    """Run a script's `main`, alone or as one of `torchrun`'s processes; errors are one line."""
    try:
        if sys.stdout is None:
            fail("standard output is closed; give it a file, or /dev/null", status=1)
        # The model libraries create and keep half a million objects. Searching them for reference
        # cycles takes a quarter of the loading time, so collect garbage rarely.
        gc.set_threshold(100_000, 50, 100)
        _print_anything()
        if processes.expected() > 1:
            runtime.distributed.start()
        end_between_imports()
        main()
        sys.stdout.flush()
    except KeyboardInterrupt:
        fail(
            "interrupted; finished files are complete, and the same command resumes exact patching",
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
    """Print characters that the terminal cannot encode as escapes, instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def explain(error: Exception) -> tuple[str | None, int]:
    """One-line message for an error that the user can act on (else None), and the exit status."""
    torch = sys.modules.get("torch")  # what is not loaded has not failed
    if isinstance(error, UserError):
        return str(error), 2
    if isinstance(error, processes.ProcessError):
        return str(error), 1
    if isinstance(error, MemoryError) or (torch and isinstance(error, torch.OutOfMemoryError)):
        return "out of memory; give a smaller --memory or --batch_size", 1
    if isinstance(error, OSError):
        place = error.filename
        if place is None:  # errors of files name them, so this is the output
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
    """Exit; with several processes, do so at once, because the others may never join a wait."""
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
    """Discard buffered output, which Python would otherwise try to write again at exit."""
    with suppress(OSError, ValueError, AttributeError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
