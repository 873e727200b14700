"""Fine-tuning: adapters that learn a text."""
