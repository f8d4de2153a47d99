"""Soft circuits, whose edges are kept to a degree, and rankings of edges learned with them."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
