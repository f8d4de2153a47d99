"""From rows of text to batches of token ids: data sets, tasks, what a tokenizer can be asked."""

from eap.runtime.lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
