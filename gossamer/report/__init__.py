"""Records to read: one self-contained page, and the summary as rows."""

from gossamer.report.page import write_report
from gossamer.report.robustness import write_robustness
from gossamer.report.sensitivity import write_sensitivity
from gossamer.report.table import Row, TableCell, markdown, summary_rows

__all__ = ["Row", "TableCell", "markdown", "summary_rows", "write_report", "write_robustness", "write_sensitivity"]
