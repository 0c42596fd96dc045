"""[11]: label smoothing."""

from dataclasses import replace

from benchmarks.papers._mnist import LENET300, error, lenet, task, trained
from benchmarks.papers._row import Numbers, Order, Row
from gossamer.models import build_for


def measure(seed: int) -> Numbers:
    """Errors without and with."""
    data = task(seed)
    smoothed = trained("lenet300", lambda: build_for("lenet300", data), replace(LENET300, label_smoothing=0.1), seed)
    return {"error, smoothed": error(smoothed, data), "error, labels as they are": error(lenet("lenet300", seed), data)}


ROW = Row(
    title="Label smoothing",
    paper="Szegedy, Vanhoucke, Ioffe, Shlens, Wojna 2016, arXiv:1512.00567",
    setting="Inception-v3 on ImageNet, epsilon 0.1: 0.2 points of top-1 and top-5 error less",
    ours="LeNet-300-100 on MNIST, epsilon 0.1, 15 epochs each; only the order can be compared",
    minutes=1,
    measure=measure,
    orders=(
        Order(says="smoothed before not", names=("error, smoothed", "error, labels as they are"), where="section 7"),
    ),
)
