"""The hyper-parameters of a training, and the learning rate that follows from them."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal

import torch
from torch import nn
from torch.optim import SGD, Adamax, AdamW, Optimizer

from gossamer.core.validation import KnownArguments, Range, check_fields
from gossamer.errors import BadInput, NoEffect

OptimizerName = Literal["sgd", "adamw", "adamax"]
ScheduleName = Literal["cosine", "one_cycle", "constant"]
Precision = Literal["auto", "bf16-mixed", "32-true"]
Keep = Literal["best", "last"]

STEPS_BETWEEN = 20  # two evaluations, at least: tiny epochs are not worth one each


@dataclass(frozen=True, kw_only=True)
class Training(KnownArguments):
    """Frozen hyper-parameters of `fit`.

    Args:
        epochs: passes over the training data.
        lr: the peak; None: found by short trials from the weights that the training starts with.
        optimizer: "sgd" (Nesterov momentum 0.9), "adamw" or "adamax".
        weight_decay: acts on tensors with two or more dimensions, not on biases and norms, which have one.
        schedule: "cosine" rises linearly over the share `warmup` of all steps, then falls to zero; "one_cycle" rises
            from lr/25 as a half cosine and falls to lr/250000 (ResNet-20 from scratch: lr 0.2, weight_decay 5e-4,
            warmup 0.3, batch 128); "constant" stays at lr after the warm-up.
        warmup: share of all steps, in [0, 1).
        clip: largest gradient norm; None: any.
        ema: decay of the running mean of the weights, 0 for none; where it is on, the mean is what is validated and
            kept.
        label_smoothing: in [0, 1); needs the task's loss to be `gossamer.core.task.cross_entropy`.
        auxiliary: weights of the losses of heads that the network runs while training, by name or pattern:
            {"heads.*": 0.3} for GoogLeNet, {"head": 0.4} for Inception-v3.
        drop_path: the probability with which the last residual block is left out of a step, less for those before it
            (stochastic depth); a network with a `drop_path` of its own (FractalNet, stochastic ResNet) gets and keeps
            this one. None: as the network does by itself.
        precision: "auto": bfloat16 autocast where the device computes in it.
        patience: end after so many evaluations without a new best; None: never.
        evaluate_every: epochs from one evaluation to the next; None: as few as have 20 steps, and as many steps as
            there are batches of validation data.
        keep: the weights of the "best" evaluation on validation data (the latest of equals), those before the first
            step among them, or the "last".

    Example:
        >>> Training(epochs=2, optimizer="adamw", lr=1e-3).options()["schedule"]
        'cosine'

    Source: Smith & Topin 2018, arXiv:1708.07120 (one_cycle).
    """

    epochs: Annotated[int, Range(1, 100_000)] = 10
    lr: Annotated[float | None, Range(0, 100, open_=("low",))] = 0.1
    optimizer: OptimizerName = "sgd"
    weight_decay: Annotated[float, Range(0, 1)] = 5e-4
    schedule: ScheduleName = "cosine"
    warmup: Annotated[float, Range(0, 1, open_=("high",))] = 0.1
    clip: Annotated[float | None, Range(0, 1e6, open_=("low",))] = None
    ema: Annotated[float, Range(0, 1, open_=("high",))] = 0.0
    label_smoothing: Annotated[float, Range(0, 1, open_=("high",))] = 0.0
    auxiliary: Mapping[str, float] | None = None
    drop_path: Annotated[float | None, Range(0, 1, open_=("high",))] = None
    precision: Precision = "auto"
    patience: Annotated[int | None, Range(1, 100_000)] = None
    evaluate_every: Annotated[int | None, Range(1, 100_000)] = None
    keep: Keep = "best"

    def __post_init__(self) -> None:
        check_fields(self, "training")
        for head, weight in (self.auxiliary or {}).items():
            if not weight > 0:
                raise BadInput(f"training: auxiliary[{head!r}] = {weight} must be greater than 0")

    def options(self) -> dict[str, Any]:
        """Hyper-parameters by name."""
        return asdict(self)


def learning_rate(training: Training, step: int, steps: int) -> float:
    """The learning rate of one step of a training whose rate is known.

    Args:
        training: with its `lr` and schedule.
        step: 0 <= step < steps.
        steps: of the whole training.

    Returns:
        The learning rate.

    Example:
        >>> learning_rate(Training(lr=0.1, schedule="constant", warmup=0.0), step=3, steps=10)
        0.1
    """
    if training.lr is None:
        raise ValueError("the learning rate has not been found yet")
    if training.schedule == "one_cycle":
        return _one_cycle(training.lr, training.warmup, step, steps)
    rising = round(training.warmup * steps)
    if step < rising:
        return training.lr * (step + 1) / (rising + 1)
    if training.schedule == "constant":
        return training.lr
    return training.lr * _half_cosine((step - rising) / (steps - rising))


def passes(steps: int, batches: int, *, usual: int) -> int:
    """How many passes over so many batches a training takes where nobody says it: the usual number, and at least so
    many steps. Few data need more passes for as many steps."""
    return max(usual, math.ceil(steps / batches))


def evaluated_every(training: Training, batches: int, validation: int) -> int:
    """After how many epochs of so many batches validation data are looked at."""
    return training.evaluate_every or math.ceil(max(STEPS_BETWEEN, validation) / batches)


def _one_cycle(peak: float, warmup: float, step: int, steps: int) -> float:
    """As `torch.optim.lr_scheduler.OneCycleLR` with its default divisors."""
    first, last = peak / 25, peak / 25 / 1e4
    top = max(warmup * steps - 1, 0.0)
    if step < top:
        return peak + (first - peak) * _half_cosine(step / top)
    return last + (peak - last) * _half_cosine((step - top) / max(steps - 1 - top, 1e-9))


def _half_cosine(part: float) -> float:
    """From 1 at 0 down to 0 at 1."""
    return (1 + math.cos(math.pi * min(part, 1.0))) / 2


def make_optimizer(parameters: Iterable[nn.Parameter], training: Training, device: torch.device) -> Optimizer:
    """The optimizer over all parameters that require gradients; weight decay where they have two dimensions or more."""
    trained = [p for p in parameters if p.requires_grad]
    if not trained:
        raise NoEffect("training: no parameter of the model requires gradients; call model.requires_grad_(True)")
    groups = [
        {"params": [p for p in trained if p.dim() > 1], "weight_decay": training.weight_decay},
        {"params": [p for p in trained if p.dim() <= 1], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    fused = device.type in ("cpu", "cuda")
    match training.optimizer:
        case "sgd":
            optimizer = SGD(groups, lr=training.lr or 0.0, momentum=0.9, nesterov=True, fused=fused)
            for p in trained:
                # What a step leaves out has no momentum yet when it takes part first, which the fused kernel refuses.
                optimizer.state[p]["momentum_buffer"] = torch.zeros_like(p)
            return optimizer
        case "adamw":
            return AdamW(groups, lr=training.lr or 0.0, fused=fused)
        case "adamax":
            return Adamax(groups, lr=training.lr or 0.0)


def set_rate(optimizer: Optimizer, lr: float) -> None:
    """The learning rate of the next step, for all parameters."""
    for group in optimizer.param_groups:
        group["lr"] = lr


def computes_in_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 is faster than float32 there."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    flags: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
    return device.type == "cpu" and bool(flags.get("avx512_bf16") or flags.get("amx_bf16"))
