"""Do neighbouring kernels become ensembles? Their similarity by distance, and what it does to noise."""
