"""Where a run, its jobs and its attacks stand: read off files and Slurm's answers; writes nothing."""
