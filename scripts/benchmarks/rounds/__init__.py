"""Rounds of on-policy distillation: how fast they are, and what their samples' age costs."""
