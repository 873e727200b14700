"""The settings of a run: what they are, what they must obey, how they are changed."""
