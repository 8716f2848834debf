"""The teacher: what generates its answers, and what it thinks of texts."""
