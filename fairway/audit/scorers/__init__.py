"""Audits of scorers: probes that only ask for costs."""
