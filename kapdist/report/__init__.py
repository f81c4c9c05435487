"""Tables, plots and one HTML page that compare runs; reads files alone and imports no torch."""

from kapdist.report.comparison import Comparison, comparison
from kapdist.report.page import write_report

__all__ = ["Comparison", "comparison", "write_report"]
