"""Lightning modules: the teacher, the student, evaluation, and what surrounds a run."""
