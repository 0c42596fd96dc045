"""Parameter sharing: weights take few shared values, or are generated from few numbers."""

from gossamer.methods._catalogue import offered

__getattr__, __dir__ = offered("share")
