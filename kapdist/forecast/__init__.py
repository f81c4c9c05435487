"""`kapdist forecast`: what a job will ask of a machine that is not at hand."""
