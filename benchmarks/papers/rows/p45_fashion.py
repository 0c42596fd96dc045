"""[45] on Fashion-MNIST."""

from benchmarks.papers._row import Number, Order, Row
from benchmarks.papers._taken import distilled

ROW = Row(
    title="Distillation into 784-800-800-10 on Fashion-MNIST",
    paper="Hinton, Vinyals, Dean 2015, arXiv:1503.02531",
    setting="MNIST: errors of the teacher 67, of the student alone 146, distilled 74: 91 % of the gap closed",
    ours="Fashion-MNIST; dropout of 0.1 and 0.3 and no shifts for the teacher, 60 epochs; students 30 epochs",
    minutes=7,
    measure=lambda seed: distilled(
        "hinton",
        seed,
        {
            "errors, distilled": ("soft targets", "errors"),
            "errors, student alone": ("alone", "errors"),
            "errors, teacher": ("teacher", "errors"),
            "part of the gap closed": ("gap closed, %",),
        },
    ),
    numbers=(Number(name="part of the gap closed", paper=91, where="section 3", tolerance=15, side="at least"),),
    orders=(
        Order(
            says="distilled before alone",
            names=("errors, distilled", "errors, student alone"),
            where="section 3",
            unit="errors",
        ),
    ),
    reason="The gap to be closed is 40 to 52 errors here, where the paper has 79, and the errors of two networks on "
    "the same 10,000 images differ by chance by about 25.",
    taken="benchmarks/results/distill.json",
    command="python -m benchmarks.distill.compare",
)
