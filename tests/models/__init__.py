"""Tiny random models of every family, and made-up results."""
