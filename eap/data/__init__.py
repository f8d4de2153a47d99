"""Data sets: from rows of text to batches of token ids; tasks, and properties of tokenizers."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
