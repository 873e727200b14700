"""Paired runs of a recipe and of its variants: is a gain real, and does it hold elsewhere."""
