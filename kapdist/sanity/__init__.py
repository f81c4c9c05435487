"""Whether an attack's number can be believed: checks that tell robustness from a gradient that hides."""
