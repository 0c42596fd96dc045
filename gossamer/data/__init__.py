"""Data sets as tasks."""

from gossamer.data.arrays import DataSplit, make_task
from gossamer.data.batches import Augmentation, Batches, Normalisation
from gossamer.data.example import tiny_network, tiny_task
from gossamer.data.load import default_task, load_task

__all__ = [
    "Augmentation",
    "Batches",
    "DataSplit",
    "Normalisation",
    "default_task",
    "load_task",
    "make_task",
    "tiny_network",
    "tiny_task",
]
