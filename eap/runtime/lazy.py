"""Public names of a package that load their modules when they are first used."""

import gc
from collections.abc import Callable
from typing import Any

import lazy_loader


def attach(
    package: str, file: str
) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """`__getattr__`, `__dir__` and `__all__` of a package whose names are in its `__init__.pyi`.

    Python looks for unused cycles again and again among the half a million objects that the
    libraries of models make while they are loaded, and that stay: a quarter of the time that
    loading takes. So it does not look meanwhile.

    Args:
        package: its `__name__`.
        file: its `__file__`.
    """
    load, names, public = lazy_loader.attach_stub(package, file)

    def load_uncollected(name: str) -> Any:
        enabled = gc.isenabled()
        gc.disable()
        try:
            return load(name)
        finally:
            if enabled:
                gc.enable()

    return load_uncollected, names, public
