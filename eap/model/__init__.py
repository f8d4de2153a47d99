"""A model's weights, what they compute, how families differ, and how one is loaded."""
