"""Tests of results: overlap, stability, areas, verdicts on a circuit, and groups of examples."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
