"""Inside a node: attention patterns and their causes, and the effects of parts and hidden units."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
