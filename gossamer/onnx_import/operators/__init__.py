"""The operators of ONNX that can be imported, by family; importing the package registers them all."""

from gossamer.onnx_import.operators import elementwise, indexing, layers, recurrent, reductions, resize, shapes

__all__ = ["elementwise", "indexing", "layers", "recurrent", "reductions", "resize", "shapes"]
