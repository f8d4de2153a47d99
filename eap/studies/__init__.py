"""What each experiment computes, where its files go, and the command line.

The names in `__init__.pyi` load their modules when first used: a script's `--help` waits for no
library of models.
"""

from eap.runtime.lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
