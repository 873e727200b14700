"""The model: the transformer and its attention backends."""
