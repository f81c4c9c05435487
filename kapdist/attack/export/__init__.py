"""Merged attacks in the formats of others: RobustBench's model_info, CSV, Parquet, LaTeX."""

from kapdist.attack.export.robustbench import DATASETS, Entry
from kapdist.attack.export.run import FORMATS, Exported, export

__all__ = ["DATASETS", "FORMATS", "Entry", "Exported", "export"]
