"""Text becomes tokens: tokenizers, shards and batches; then where text comes from and its guard."""
