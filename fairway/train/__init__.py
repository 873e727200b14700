"""Training: the loop, its clocks, optimisers, schedules and checkpoints."""
