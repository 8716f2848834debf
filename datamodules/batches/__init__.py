"""From examples to the batches of each process and step."""
