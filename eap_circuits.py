"""The distribution's own name: says in one line when `eap` is another package, and runs scripts.

The EAP-IG library is imported as `eap`, too; where both are installed, or it stands first on the
path, the scripts' own imports would fail somewhere inside it. So every script imports this module
first. It imports nothing of `eap` before it has looked.
"""

import sys
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path


def put_own_checkout_first() -> None:
    """Let a script of a checkout, in whatever folder of it, import that checkout's package.

    Python puts the script's own folder first. For scripts below `results/` that is not the
    checkout, and they would import the package of whichever checkout is installed.
    """
    script = getattr(sys.modules["__main__"], "__file__", None)
    for folder in Path(script).resolve().parents[:3] if script else ():
        if (folder / "eap" / "studies" / "catalogue.py").is_file():
            sys.path.insert(0, str(folder))
            return


def check() -> None:
    """End with one line if `import eap` would give another package, or none."""
    spec = find_spec("eap")
    places = list(map(Path, (spec and spec.submodule_search_locations) or ()))
    if any((place / "studies" / "catalogue.py").is_file() for place in places):
        return
    what = "there is no package `eap` here"
    if spec is not None:
        found = places[0] if places else spec.origin
        what = f"`import eap` gives another package of that name, {found}"
    sys.exit(
        f"error: {what}; install eap-circuits in an environment of its own (the EAP-IG library has "
        "the same import name)"
    )


def run(main: Callable[[], None]) -> None:
    """Run a script's `main`; `eap.studies.shell.run` says how it ends."""
    import_module("eap.studies.shell").run(main)


def command() -> None:
    """The command `eap`."""
    import_module("eap.commands").main()


put_own_checkout_first()
check()
