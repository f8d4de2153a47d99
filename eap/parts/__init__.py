"""Parts of a node's output: hidden units, channels, features, or a basis of your own."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
