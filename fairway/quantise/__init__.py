"""Quantisation of float32 weights to small integers: number grids, GPTQ, calibration."""
