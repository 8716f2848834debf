"""The student, and how it takes what a teacher left."""
