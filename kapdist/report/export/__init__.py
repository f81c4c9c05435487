"""Merged attacks in the formats of others: RobustBench's model_info, CSV, Parquet, LaTeX."""

from kapdist.report.export.robustbench import Entry
from kapdist.report.export.run import Exported, export

__all__ = ["Entry", "Exported", "export"]
