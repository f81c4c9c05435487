"""Merged attacks in the formats of others: RobustBench's model_info, CSV, Parquet, LaTeX."""
