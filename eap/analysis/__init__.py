"""What a result is worth: overlap, stability, areas, tests of a circuit, groups of examples."""

from eap.runtime.lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
