"""A study as jobs: planned, run here or submitted to SLURM, watched."""
