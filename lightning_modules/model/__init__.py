"""A causal language model: loading, adapters, its output head, sharding, generation."""
