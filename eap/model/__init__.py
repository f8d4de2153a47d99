"""Models: weights, computations, differences between families, and loading."""
