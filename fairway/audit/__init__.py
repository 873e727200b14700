"""Is this score real? Probes of scorers, checks of ledgers, and audits of records."""
