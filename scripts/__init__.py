"""One thin entry point a stage: `python -m scripts.fit`, from the repository's root."""
