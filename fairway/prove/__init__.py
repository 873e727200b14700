"""From distributions to bytes and back: what can be decoded was predicted."""
