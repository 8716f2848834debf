"""The microworld: `python -m scripts.microworld`; its questions, and the pre-training of its model families."""
