"""Training: loop.py tells the story, the rest of the files each hold one detail of it."""
