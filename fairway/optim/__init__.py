"""Learning rules: Muon for matrices, AdamW for the rest, and their schedules."""
