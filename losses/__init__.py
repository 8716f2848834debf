"""Losses between a student's logits and what it is taught; nothing here knows of data or Lightning."""
