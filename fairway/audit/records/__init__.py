"""Audits of records: what a folder in the format of the challenge says, and whether it agrees."""
