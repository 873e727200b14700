"""GPU kernels that equal the plain formulas and run in their place."""
