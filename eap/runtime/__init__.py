"""Memory, processes, files and progress: what computing needs and no number depends on."""

from eap.runtime.lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
