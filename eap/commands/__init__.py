"""The command `eap`: every script of the repository, and tools to look at graphs and data.

    eap pareto --model toy --task ioi        as python pareto.py --model toy --task ioi
    eap figure-3 --model toy                 as python results/.../plot_real_pareto_normalized.py
    eap view graphs/toy/ioi_task.json

The scripts themselves are run, so options and help are theirs. Loads nothing that they do not.
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
    "view": "a page to look around in a circuit",
    "compare": "how two graphs agree, and what their circuits share",
    "check-data": "read a data set of your own, and say what was understood",
}


def scripts_folder() -> Path:
    """Where the scripts are: the checkout, or the copy of them that was installed."""
    installed = Path(str(files("eap") / "_scripts"))
    return installed if installed.is_dir() else CHECKOUT


def main() -> None:
    """Run the command that is named first."""
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
    """What `eap --help` says."""
    width = max(map(len, [*EXPERIMENTS, *figures(), *TOOLS]))
    lines = ["usage: eap COMMAND [OPTIONS]     (eap COMMAND --help says more; eap --version)"]
    for title, commands in (
        ("experiments", {name: text for name, (_, text) in EXPERIMENTS.items()}),
        ("figures and tables", {name: text for name, (_, text) in figures().items()}),
        ("tools", TOOLS),
    ):
        lines += ["", f"{title}:"]
        lines += [f"  {name:<{width}}  {text}" for name, text in commands.items()]
    lines += [
        "",
        "begin with (a minute, on the small model that comes along):",
        "  eap pareto --model toy --task ioi --head 100    # scores all edges, measures circuits",
        "  eap view graphs/toy/ioi_task.json               # writes ioi_task.html: the circuit",
    ]
    return "\n".join(lines)
