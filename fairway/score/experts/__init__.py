"""Experts beside the model: what they predict, how it is mixed, and what that scores."""
