"""[40]: how many times fewer weights Table 2's networks have."""

from benchmarks.papers import _taken
from benchmarks.papers._row import Number, Numbers, Row

PRINTED = {
    "VGG-16": ("vgg16", 2.72, 2.75), "AlexNet": ("alexnet_one_tower", 4.94, 5.0), "GoogLeNet": ("googlenet", 2.79, 2.84)
}  # fmt: skip


def measure(seed: int) -> Numbers:
    """Weights of the dense network over those of each way."""
    weights = {(one["network"], one["way"]): one["weights"] for one in _taken.document("lowrank.json")["build"]}
    return {
        f"{title}, {way}": weights[name, "dense"] / weights[name, way]
        for title, (name, _, _) in PRINTED.items()
        for way in ("BN low-rank", "CP")
    }


ROW = Row(
    title="How many times fewer weights the low-rank networks of Table 2 have",
    paper="Tai, Xiao, Zhang, Wang, E 2016, arXiv:1511.06067, as Cheng et al. 2017 print it",
    setting="three networks for ImageNet, trained with batch norms (pair of filters) or decomposed (CP)",
    ours="built at the ranks that give these ratios; only the counts are compared, since ImageNet is not here",
    minutes=0.1,
    measure=measure,
    numbers=tuple(
        Number(name=f"{title}, {way}", paper=value, where="table 2", tolerance=0.1, side="about", unit="x")
        for title, (_, *values) in PRINTED.items()
        for way, value in zip(("BN low-rank", "CP"), values, strict=True)
    ),
    seeds=(0,),
    exact=True,
    taken="benchmarks/results/lowrank.json",
    command="python -m benchmarks.lowrank.compare",
)
