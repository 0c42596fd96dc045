"""Damaged files and killed jobs."""
