"""Attacks that are not the library's: some of ours without gradients, and the user's own functions."""
