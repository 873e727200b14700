"""Records: several seeds, compared, written for others, and verified."""
