"""What each ATen operation does to slots: importing this module fills the table."""

from gossamer.network import layout_rules, math_rules
from gossamer.network.walk import RULES, Walk, walk

__all__ = ["RULES", "Walk", "layout_rules", "math_rules", "walk"]
