"""A budget becomes a recipe: what a step costs, what a law expects, what this machine does."""
