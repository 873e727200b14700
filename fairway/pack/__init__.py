"""Packing of whole numbers into a file: entropy coding and the artifact's container."""
