"""Modules: their costs, blocks, exact foldings, dead units, wider layers, and their structure as data."""

from gossamer.modules.cost import Analysis, analyze, dense_bytes, layer_costs, total_macs, total_params

__all__ = ["Analysis", "analyze", "dense_bytes", "layer_costs", "total_macs", "total_params"]
