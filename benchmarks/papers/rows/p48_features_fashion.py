"""[48], attention transfer and FSP on Fashion-MNIST: what a student learns from a teacher's features."""

from benchmarks.papers._mnist import apply, error, seeded, task
from benchmarks.papers._row import Numbers, Order, Row
from benchmarks.training.learning_rates import shortened
from gossamer.models import build_for, pretrained

HOW = {"epochs": 10, "lr": 0.05}
HINTS = {**HOW, "hint_epochs": 3}
SAMPLES = 5000


def measure(seed: int) -> Numbers:
    """Errors of ResNet-8 alone, on soft targets, and on three kinds of features of ResNet-20."""
    whole = task(seed, "fashion-mnist")
    data, teacher = shortened(whole, SAMPLES, 128), pretrained("resnet20", "fashion-mnist")
    student = seeded(lambda: build_for("resnet8", data), seed + 100)
    longer = {**HOW, "epochs": HINTS["epochs"] + HINTS["hint_epochs"]}
    made = {
        "alone": apply("distill.recover", student, seed, data, **longer, alpha=1.0),
        "soft targets": apply("distill.kd", student, seed, data, **longer, teacher=teacher),
        "attention": apply("distill.attention", student, seed, data, **longer, teacher=teacher),
        "neurons": apply("distill.neurons", student, seed, data, **HINTS, teacher=teacher),
        "FSP": apply("distill.fsp", student, seed, data, **HINTS, teacher=teacher),
    }
    return {"error of the teacher": error(teacher, data)} | {f"error, {k}": error(m, data) for k, m in made.items()}


ROW = Row(
    title="Selected neurons, attention and FSP matrices as what a student learns from",
    paper="Luo, Zhu, Liu, Wang, Tang 2016, doi:10.1609/aaai.v30i1.10452; Zagoruyko, Komodakis 2017, arXiv:1612.03928; "
    "Yim, Joo, Bae, Kim 2017, doi:10.1109/CVPR.2017.754",
    setting="faces of LFW (selected neurons), CIFAR-10 (attention, FSP): a student taught by features before one alone",
    ours="Fashion-MNIST, 5,000 training images; ResNet-20 of the package teaches ResNet-8; 13 epochs for all",
    minutes=9,
    measure=measure,
    orders=(
        Order(
            says="selected neurons before labels alone",
            names=("error, neurons", "error, alone"),
            where="Luo et al.",
        ),
        Order(
            says="attention before labels alone",
            names=("error, attention", "error, alone"),
            where="Zagoruyko and Komodakis",
        ),
        Order(says="FSP before labels alone", names=("error, FSP", "error, alone"), where="Yim et al."),
    ),
)
