"""What the benchmark `faults` is made of: stages in forked processes, and what is done to them."""
