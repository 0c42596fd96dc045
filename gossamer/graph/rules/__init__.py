"""What each ATen operation does to channel indices: importing this module fills the table."""

from gossamer.graph.propagation import RULES, Propagation, propagate
from gossamer.graph.rules import compute, layout, rows

__all__ = ["RULES", "Propagation", "compute", "layout", "propagate", "rows"]
