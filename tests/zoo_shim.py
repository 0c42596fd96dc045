"""Lets torchvision, and timm, which needs it, be imported where torchvision's compiled operations are missing:
classification networks need none of them.

Only for tests and benchmarks.
"""

import importlib
import warnings
from typing import Any

import torch

_LIBRARY = torch.library.Library("torchvision", "FRAGMENT")
_NAMES = ("nms", "qnms", "roi_align", "qroi_align", "roi_pool", "ps_roi_align", "ps_roi_pool", "deform_conv2d")
_BACKWARD = tuple(
    f"_{name}_backward" for name in ("roi_align", "roi_pool", "ps_roi_align", "ps_roi_pool", "deform_conv2d")
)


def torchvision_models() -> Any:
    """`torchvision.models`; raises ImportError where torchvision is not installed."""
    if not hasattr(torch.ops.torchvision, "nms"):
        for name in (*_NAMES, *_BACKWARD):
            _LIBRARY.define(f"{name}(Tensor x) -> Tensor")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module("torchvision.models")


def timm() -> Any:
    """`timm`; raises ImportError where it or torchvision is not installed."""
    torchvision_models()
    return importlib.import_module("timm")
