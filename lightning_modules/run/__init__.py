"""A run's folder, its checkpoints, and its end: done, stopped or failed."""
