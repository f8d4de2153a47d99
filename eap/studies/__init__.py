"""Experiments: what each computes, where its files go, and the command line.

A name in `__init__.pyi` loads its module on first use, so that a script's `--help` does not load
any model library.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
