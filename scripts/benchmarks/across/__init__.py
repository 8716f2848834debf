"""What the benchmark `tokenizers` is made of: its trainings, a baseline, and a student with another tokenizer."""
