"""GPU kernels that equal the plain formulas and replace them."""
