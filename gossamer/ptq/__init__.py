"""Post-training quantization to int8: ranges, equalization, QDQ nodes, and the fallback sequence over all of them."""

from gossamer.ptq.fallback import Quantized, float32_correct, quantize_int8

__all__ = ["Quantized", "float32_correct", "quantize_int8"]
