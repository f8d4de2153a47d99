"""Number of multiply-adds of the matrix products in a run, from the sizes of model and batch."""

from eap.runtime.memory import Extent, Shapes


def layer_operations(shapes: Shapes, extent: Extent, *, n_queries: int) -> int:
    """Operations of one layer on one example: all keys and values, `n_queries` queries and MLPs."""
    keys_and_values = 2 * extent.n_positions * shapes.d_model * shapes.d_kv
    heads = 2 * n_queries * shapes.d_heads * (shapes.d_model + extent.n_keys)
    return keys_and_values + heads + n_queries * mlp_operations(shapes)


def mlp_operations(shapes: Shapes) -> int:
    """Operations of one MLP on one token."""
    return (3 if shapes.gated else 2) * shapes.d_model * shapes.d_mlp


def run_operations(shapes: Shapes, extent: Extent, *, first_layer: int = 0) -> int:
    """Operations of the layers from `first_layer` on; the last layer runs at one position only."""
    total = 0
    for layer in range(first_layer, shapes.n_layers):
        n_queries = 1 if layer == shapes.n_layers - 1 else extent.n_positions
        total += layer_operations(shapes, extent, n_queries=n_queries)
    return total


def patching_operations(
    shapes: Shapes, extent: Extent, layer: int, kind: str, *, n_columns: int
) -> int:
    """Operations of one patched edge on one example.

    Args:
        shapes: shapes of the model.
        extent: extent of the example.
        layer: layer of the receiver.
        kind: kind of the receiver: 'q', 'k', 'v', 'mlp' or 'logits'.
        n_columns: number of columns of the vocabulary that are unembedded.
    """
    unembedding = shapes.d_model * n_columns
    if kind == "logits":
        return unembedding
    n_positions = extent.n_positions
    n_queries = 1 if layer == shapes.n_layers - 1 else n_positions
    rest = unembedding + run_operations(shapes, extent, first_layer=layer + 1)
    if kind == "mlp":
        return n_queries * mlp_operations(shapes) + rest
    head = n_positions * shapes.d_model * shapes.d_head
    head += 2 * n_queries * extent.n_keys * shapes.d_head
    head += n_queries * shapes.d_head * shapes.d_model
    return head + (0 if shapes.parallel else n_queries * mlp_operations(shapes)) + rest
