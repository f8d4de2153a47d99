"""Entry point of all scripts, which first checks that `import eap` finds this package.

The EAP-IG library is also imported as `eap`. If both libraries are installed, or EAP-IG comes first
on the path, a script's imports would fail somewhere inside EAP-IG. Every script therefore imports
this module first, and this module imports nothing from `eap` before the check.
"""

import sys
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path


def put_own_checkout_first() -> None:
    """Make a script in any folder of a checkout import the package of the same checkout.

    Python puts the script's own folder first on the path. A script below `results/` would therefore
    import the installed package, which may belong to another checkout.
    """
    script = getattr(sys.modules["__main__"], "__file__", None)
    for folder in Path(script).resolve().parents[:3] if script else ():
        if (folder / "eap" / "studies" / "catalogue.py").is_file():
            sys.path.insert(0, str(folder))
            return


def check() -> None:
    """Exit with a one-line error if `import eap` would find another package or none."""
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
    """Run a script's `main` with the error handling of `eap.studies.shell.run`."""
    import_module("eap.studies.shell").run(main)


def command() -> None:
    """Run the command `eap`."""
    import_module("eap.commands").main()


put_own_checkout_first()
check()
