"""A run from text to report: its stages, its folder, its results."""
