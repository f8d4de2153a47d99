"""What others have made: MIB's data, circuits found by hand, models whose circuit is known."""

from eap.runtime.lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
