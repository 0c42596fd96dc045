"""The compact file: a network in as few bytes as its values need, loadable without pickle and without the class."""

from gossamer.deploy.gsr.fold import fold_batch_norm
from gossamer.deploy.gsr.look import Inspected, StoredTensor, inspect_file
from gossamer.deploy.gsr.read import load, read_tensor
from gossamer.deploy.gsr.write import save

__all__ = ["Inspected", "StoredTensor", "fold_batch_norm", "inspect_file", "load", "read_tensor", "save"]
