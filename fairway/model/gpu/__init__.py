"""What runs on a GPU in place of plain formulas, and equals them."""
