"""Merged attacks in the formats of others: RobustBench's model_info, CSV, Parquet, LaTeX."""

from kapdist.attack.export.robustbench import Entry
from kapdist.attack.export.run import Exported, export

__all__ = ["Entry", "Exported", "export"]
