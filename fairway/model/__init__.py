"""Tokens become a model: the transformer and its attention backends."""
