"""What follows from a config and the number of ranks and images: steps, batches, rates. Pure."""
