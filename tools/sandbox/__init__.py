"""A real two-node Slurm with accounting on one machine; `tools/slurm_sandbox.py` is its command line."""
