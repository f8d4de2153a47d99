"""Infrastructure of computations that no result depends on: memory, processes, files, progress."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
