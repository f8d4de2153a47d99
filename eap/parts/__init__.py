"""What a node's output is made of: hidden units, channels, features, or a basis of one's own."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
