"""Diagnostics of teacher-student fit before any training."""
