"""A study's predictions, compared arm by arm."""
