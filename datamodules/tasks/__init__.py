"""What is asked: benchmarks, questions, the microworld, and the prompts that put a question to a model."""
