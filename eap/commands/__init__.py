"""The command `eap`: all scripts of the repository, and tools for graphs and data.

    eap pareto --model toy --task ioi        runs python pareto.py --model toy --task ioi
    eap figure-3 --model toy                 runs python results/.../plot_real_pareto_normalized.py
    eap view graphs/toy/ioi_task.json

Options and help are those of the scripts. Loads no more modules than the scripts do.
"""

import runpy
import sys
from importlib import import_module
from importlib.resources import files
from pathlib import Path

from eap.runtime.errors import quoted
from eap.runtime.shipped import CHECKOUT
from eap.runtime.version import __version__
from eap.studies import shell
from eap.studies.command_names import EXPERIMENTS, figures

TOOLS = {
    "view": "write an interactive page of a circuit",
    "compare": "compare the scores and the circuits of two graphs",
    "check-data": "check a data set of your own",
}


def scripts_folder() -> Path:
    """Folder of the scripts: the checkout, or the installed copy."""
    installed = Path(str(files("eap") / "_scripts"))
    return installed if installed.is_dir() else CHECKOUT


def main() -> None:
    """Run the command that the first argument names."""
    name, *arguments = sys.argv[1:] or ["--help"]
    scripts = {**EXPERIMENTS, **figures()}
    if name in ("-h", "--help"):
        print(overview())
    elif name == "--version":
        print(f"eap {__version__}")
    elif name in TOOLS:
        sys.argv = [f"eap {name}", *arguments]
        shell.run(import_module(f"eap.commands.{name.replace('-', '_')}").main)
    elif name in scripts:
        script = scripts_folder() / scripts[name][0]
        sys.argv = [f"eap {name}", *arguments]
        sys.path.insert(0, str(script.parent))  # as Python does for a script
        shell.run(runpy.run_path(str(script))["main"])
    else:
        shell.fail(f"no command {quoted(name, 60)} (see eap --help)")


def overview() -> str:
    """The text of `eap --help`."""
    width = max(map(len, [*EXPERIMENTS, *figures(), *TOOLS]))
    lines = ["usage: eap COMMAND [OPTIONS]     (options: eap COMMAND --help; eap --version)"]
    for title, commands in (
        ("experiments", {name: text for name, (_, text) in EXPERIMENTS.items()}),
        ("figures and tables", {name: text for name, (_, text) in figures().items()}),
        ("tools", TOOLS),
    ):
        lines += ["", f"{title}:"]
        lines += [f"  {name:<{width}}  {text}" for name, text in commands.items()]
    lines += [
        "",
        "start here (takes a minute, with the small model that is included):",
        "  eap pareto --model toy --task ioi --head 100    # scores all edges, measures circuits",
        "  eap view graphs/toy/ioi_task.json               # writes the circuit to ioi_task.html",
    ]
    return "\n".join(lines)
