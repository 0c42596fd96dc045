"""Runtimes of phones, boards and browsers: a network is written for one of them, run on it here, and compared."""

from gossamer.targets.registry import TARGETS, Target, compare_target, open_target, write_target

__all__ = ["TARGETS", "Target", "compare_target", "open_target", "write_target"]
