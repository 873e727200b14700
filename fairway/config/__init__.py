"""The settings of a run: their definitions, their checks, and changes of them."""
