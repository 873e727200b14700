"""Audits of record folders in the format of the challenge."""
