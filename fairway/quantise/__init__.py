"""From float32 weights to small integers: number grids, GPTQ, and its calibration statistics."""
