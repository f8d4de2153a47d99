"""From rows of text to batches of token ids: data sets, tasks, what a tokenizer can be asked."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
