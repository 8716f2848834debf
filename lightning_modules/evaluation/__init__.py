"""What a student's answers are worth."""
