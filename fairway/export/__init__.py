"""A model taken elsewhere: its weights, and code that needs neither Fairway nor kernels."""
