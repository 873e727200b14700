"""A model for other programs: its weights, and code that needs neither Fairway nor kernels."""
