"""Turns text into tokens: tokenizers, shards and batches, sources of text, and the guard."""
