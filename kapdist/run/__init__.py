"""A run's directory: its paths, the only ways to write in it, its lock, how its attempts end."""
