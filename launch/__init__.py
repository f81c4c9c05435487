"""Slurm: queue a training or an attack, survive what the cluster does, say where it stands."""
