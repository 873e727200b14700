"""Audits: probes of scorers, checks of ledgers, and audits of other people's records."""
