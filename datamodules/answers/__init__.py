"""Which answer a text ends up with, and whether it is right."""
