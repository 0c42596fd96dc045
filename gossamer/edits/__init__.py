"""The five edits: all that a method does to a network, by its kind and by the function that does it.

| kind | function | what it does |
|---|---|---|
| `EditKind.RESIZE` | `resize`, `prune` | cut coupled channels everywhere they occur |
| `EditKind.SWAP` | `swap` | put another module in the place of a module |
| `EditKind.CONSTRAIN` | `constrain` | keep weights in a set while they train |
| `EditKind.ASSIGN` | `assign` | new values for weights, in closed form |
| `EditKind.TRAIN` | `gossamer.train.fit` | train, with loss terms besides the task's loss |

Training needs much more than a network and is at home in `gossamer.train`. An `Edit` is the record of one of them.

Example:
    >>> import torch
    >>> from gossamer.edits import EditKind, swap
    >>> model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.ReLU())
    >>> swap(model, {"1": torch.nn.Tanh()})[1], EditKind.SWAP.value
    (Tanh(), 'swap')
"""

from gossamer.constraints.apply import constrain
from gossamer.core.record import Edit, EditKind
from gossamer.edits.assign import assign
from gossamer.edits.swap import swap
from gossamer.graph.pruner import prune
from gossamer.graph.slicing import resize

__all__ = ["Edit", "EditKind", "assign", "constrain", "prune", "resize", "swap"]
