"""Proofs and compression: distributions become bytes, and bytes become the text again."""
