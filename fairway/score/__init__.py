"""From an artifact to bits per byte: windows, the ledger, and the predictors it judges."""
