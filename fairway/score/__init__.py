"""Scores in bits per byte: windows, the ledger, and predictors."""
