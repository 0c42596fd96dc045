"""[14] on the hidden layer of a network of MNIST."""

from benchmarks.papers._mnist import LENET300, apply, error, mlp, task, trained
from benchmarks.papers._row import Number, Numbers, Order, Row

# Method and settings of each codec, at about 16 times, which are those of the first layer: 784 x 1000.
CODECS = {
    "products": ("share.product", {"width": 2, "entries": 8}),
    "k-means": ("share.kmeans", {"bits": 2, "codebook": "layer"}),
    "residuals": ("share.residual", {"entries": 32, "stages": 2}),
    "signs": ("share.binary", {}),
    "low rank": ("lowrank.svd", {"ranks": {"1": 27}}),
}


def measure(seed: int) -> Numbers:
    """The points that each codec of the first layer loses."""
    dense = trained("mlp-1000", lambda: mlp(784, 1000, 10), LENET300, seed)
    before = error(dense, task(seed))
    found = {"error of the dense network": before}
    for name, (method, options) in CODECS.items():
        coded = apply(method, dense, seed, layers=("1",), **options)
        found[f"lost, {name}"] = error(coded, task(seed)) - before
    return found


ROW = Row(
    title="Four codecs of a fully connected layer, without training",
    paper="Gong, Liu, Yang, Bourdev 2014, arXiv:1412.6115",
    setting="the fully connected layers of a network for ImageNet, 16 to 24 times smaller; points of accuracy lost",
    ours="MNIST, the first layer of 784-1000-10 at 18 (products), 16 (k-means), 16 (residuals), 32 (signs) and 16 (low "
    "rank) times; no training after it",
    minutes=2,
    measure=measure,
    numbers=(Number(name="lost, products", paper=1.0, where="abstract", tolerance=0.1, unit="points"),),
    orders=(
        Order(
            says="products lose less than k-means, k-means less than residuals, these less than signs",
            names=("lost, products", "lost, k-means", "lost, residuals", "lost, signs"),
            where="section 4",
            tolerance=0.1,
            unit="points",
        ),
    ),
)
