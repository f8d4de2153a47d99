"""Import of modules by the short names of the reference: `eap.attention` is `eap.inside.attention`.

As an attribute of the package, a short name is known from `eap/__init__.pyi`. This finder lets
`import eap.attention` and `from eap.attention import head_result` find the same module.
"""

import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType


class ShortNames(MetaPathFinder, Loader):
    """Finder of modules of the package that are imported by another name than their own.

    Attributes:
        own_spec: spec of the module that is being imported, which the import system replaces.
    """

    own_spec: ModuleSpec | None = None

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Spec of a short name; None for any other name."""
        package, _, name = fullname.rpartition(".")
        if package != "eap" or name not in sys.modules["eap"].__all__:
            return None
        is_module = isinstance(getattr(sys.modules["eap"], name), ModuleType)
        return ModuleSpec(fullname, self) if is_module else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """The module itself, which has been imported by its own name."""
        module: ModuleType = getattr(sys.modules["eap"], spec.name.rpartition(".")[2])
        self.own_spec = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Run nothing again; the module keeps its own spec."""
        module.__spec__ = self.own_spec
