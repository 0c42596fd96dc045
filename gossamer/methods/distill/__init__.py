"""Knowledge distillation: train a student on the outputs or layers of a teacher, or of itself."""

from gossamer.methods._catalogue import offered

__getattr__, __dir__ = offered("distill")
