"""The compact file: a network in as few bytes as its values need, loadable without pickle and without the class."""

from gossamer.compact.batch_norm import fold_batch_norm
from gossamer.compact.inspection import Inspected, StoredTensor, inspect_file
from gossamer.compact.reading import load, read_tensor
from gossamer.compact.writing import save

__all__ = ["Inspected", "StoredTensor", "fold_batch_norm", "inspect_file", "load", "read_tensor", "save"]
