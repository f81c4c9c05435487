"""Intervals, and what a difference between two models is worth: numpy alone, no files."""
