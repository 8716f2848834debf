"""Students as files for ordinary machines."""
