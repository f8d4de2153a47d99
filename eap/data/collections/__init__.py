"""Data from other sources: MIB's data, circuits found by hand, models with known circuits."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
