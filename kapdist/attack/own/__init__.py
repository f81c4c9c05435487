"""Attacks that are not the library's: some of ours, and the user's own functions."""
