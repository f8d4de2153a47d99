"""What goes on inside a node: where heads look and why, and which parts and units matter."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
