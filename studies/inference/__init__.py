"""Estimates with intervals, and the family interaction."""
