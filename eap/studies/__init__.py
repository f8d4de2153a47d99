"""What each experiment computes, where its files go, and the command line.

The names in `__init__.pyi` load their modules when first used: a script's `--help` waits for no
library of models.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
