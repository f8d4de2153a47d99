"""Numbers in, numbers out: measures, intervals and tests. No model is read here."""

from eap.runtime.lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
