"""Experts beside the model: their predictions, the mixture, and its score."""
