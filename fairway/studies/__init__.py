"""Paired runs of a recipe and of its variants: whether a gain is real, and whether it transfers."""
