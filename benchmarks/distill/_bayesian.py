"""Bayesian dark knowledge on Fashion-MNIST: does the student know what it does not know as well as the ensemble does?

LeNet-300-100 three times, on 5,000 training images without augmentation, which would make the posterior one of other
data: trained by SGD, as the average of draws from its posterior, and as the student of such draws. `table(seed)` gives
top-1 and calibration error in percent and the negative log likelihood in nats, all on the test split.
"""

from dataclasses import replace
from functools import cache
from itertools import islice

import torch
from torch import Tensor, nn

from gossamer.core.batches import inputs_and_target
from gossamer.core.conditions import own_randomness
from gossamer.core.context import Context
from gossamer.core.task import Task
from gossamer.data import load_task
from gossamer.measure.calibration import calibration_error, logits_and_labels, negative_log_likelihood
from gossamer.methods.distill.bayesian import BayesianDarkKnowledge
from gossamer.models.zoo import build_for
from gossamer.train import Training, fit
from gossamer.train.batches import batches_of_epoch

EPOCHS = 40
# Steps between two draws of the ensemble.
THINNING = 25
METHOD = BayesianDarkKnowledge(epochs=EPOCHS, lr=0.1, weight_decay=0.0, burn_in=10, sampler_lr=0.02, prior=10.0)


@cache
def task(seed: int) -> Task:
    """Fashion-MNIST as it is: 5,000 images to train, 2,048 to choose epochs by."""
    data = load_task("fashion-mnist", seed=seed, augment=False, validation=55_000)
    return replace(data, validation=list(islice(data.validation, 16)))


def trained(seed: int) -> nn.Module:
    """By SGD to the mode of the same posterior: weight decay is the prior over the number of samples."""
    torch.manual_seed(seed)
    network, samples = build_for("lenet300", task(seed)), len(task(seed).train) * 128
    # The epoch that is best on validation data is kept, of this network as of the student.
    training = Training(epochs=EPOCHS, lr=0.05, weight_decay=METHOD.prior / samples)
    return fit(network, task(seed), training, Context(seed=seed, accelerator="cpu")).model


@torch.no_grad()
def probabilities_on_test(network: nn.Module, seed: int) -> Tensor:
    """(samples, classes), float64."""
    return torch.cat([network(*inputs_and_target(batch)[0]).double().softmax(1) for batch in task(seed).test])


def ensemble(context: Context) -> tuple[Tensor, Tensor, int]:
    """Mean probabilities of draws from as long a walk as the student's, those of the last draw, and how many."""
    posterior, seed = METHOD.posterior(task(context.seed), context), context.seed
    total, one, count = torch.zeros(()), torch.zeros(()), 0
    with own_randomness():
        for epoch in range(EPOCHS):
            for index, (images, labels) in batches_of_epoch(task(seed).train, seed, epoch, 0, 0):
                posterior.step((images,), labels)
                if (epoch * len(task(seed).train) + index) % THINNING == 0:
                    one, count = probabilities_on_test(posterior.network, seed), count + 1
                    total = total + one
    return total / count, one, count


def table(seed: int) -> dict[str, dict[str, float]]:
    """Rows by network."""
    network = trained(seed)
    context = Context(seed=seed, accelerator="cpu", teacher=network)
    torch.manual_seed(seed + 100)
    student = METHOD.apply(build_for("lenet300", task(seed)), task(seed), context)
    mean, one, draws = ensemble(context)
    labels = logits_and_labels(network, task(seed).test)[1]
    logits = {
        "SGD": logits_and_labels(network, task(seed).test)[0],
        f"SGLD, mean of {draws} draws": mean.log(),
        "SGLD, one draw": one.log(),
        "student": logits_and_labels(student, task(seed).test)[0],
    }
    return {
        name: {
            "top1": 100 * float((z.argmax(1) == labels).double().mean()),
            "nll": negative_log_likelihood(z, labels),
            "ece": 100 * calibration_error(z, labels),
        }
        for name, z in logits.items()
    }
