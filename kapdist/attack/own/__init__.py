"""Attacks of our own: one algorithm, one file."""
