"""Deep Compression and our own way into small files, on the LeNets."""

from collections.abc import Mapping

from benchmarks.papers._mnist import apply, error, lenet, pruned, ratio, task
from benchmarks.papers._row import Numbers

# Bits of the codebooks of convolutions and of the other layers (tables 3 and 4 of the paper).
BITS = {"lenet300": (6, 6), "lenet5": (8, 5)}


def measure(name: str, seed: int, *, retraining: int, centers: int, ours: Mapping[int, int]) -> Numbers:
    """Errors and ratios of whole files. ours: epochs of `quantize.rate` for each ratio that is asked for."""
    data, dense = task(seed), lenet(name, seed)
    found = {"error of the dense network": error(dense, data)}
    model = pruned(name, seed, epochs=retraining)
    for bits, layers in zip(BITS[name], (("conv*",), ("fc*",)), strict=True):
        if name == "lenet5" or layers == ("fc*",):
            how = {"codebook": "layer", "start": "linear", "gradient": "sum", "layers": layers}
            model = apply("share.kmeans", model, seed, bits=bits, **how)
    model = apply("distill.recover", model, seed, epochs=centers, lr=1e-5, alpha=1.0)
    found |= {"error, Deep Compression": error(model, data), "ratio, Deep Compression": ratio(model, dense, data)}
    for asked, epochs in ours.items():
        small = apply("quantize.rate", dense, seed, compression_ratio=asked, epochs=epochs, teacher=dense)
        found |= {f"error, quantize.rate {asked}x": error(small, data)}
        found |= {f"ratio, quantize.rate {asked}x": ratio(small, dense, data)}
    return found
