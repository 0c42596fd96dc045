"""Knowledge distillation: a network learns from another one, or from itself."""

from gossamer.methods._catalogue import offered

__getattr__, __dir__ = offered("distill")
