"""Which arms a study has, and what it can see before it runs."""
