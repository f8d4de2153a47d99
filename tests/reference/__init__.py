"""Slow, obviously correct twins of what the package does fast; they share no code with it."""
