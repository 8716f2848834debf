"""Reading what others wrote, and writing so that a reader never sees half of a file."""
