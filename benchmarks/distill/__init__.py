"""What a teacher is worth to a student."""
