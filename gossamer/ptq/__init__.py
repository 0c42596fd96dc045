"""Post-training quantization to int8: ranges, equalization, QDQ nodes, and the fallback sequence over all of them.

The names are imported when they are first used: all of this needs the extra `deploy`.
"""

from typing import TYPE_CHECKING

from gossamer.core.lazy import lazily

if TYPE_CHECKING:
    from gossamer.ptq.fallback import Quantized, float32_scores, quantize_int8

__all__ = ["Quantized", "float32_scores", "quantize_int8"]
__getattr__, __dir__ = lazily(__name__, {"fallback": ("Quantized", "float32_scores", "quantize_int8")})
