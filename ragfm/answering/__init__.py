"""Answers and their evidence."""
