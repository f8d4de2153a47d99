"""The bridge of TransformerLens, imported without changing the logging of transformers."""

from transformers.utils import logging as logs

_VERBOSITY = logs.get_verbosity()

from transformer_lens.model_bridge import TransformerBridge  # noqa: E402

logs.set_verbosity(_VERBOSITY)

__all__ = ["TransformerBridge"]
