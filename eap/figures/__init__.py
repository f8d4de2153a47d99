"""Tables and graphs read through one door, and every figure drawn from them."""

from eap.runtime.lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
