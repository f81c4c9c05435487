"""The status of a run, its jobs and its attacks: read off files and Slurm's answers; writes nothing."""
