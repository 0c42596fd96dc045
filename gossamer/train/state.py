"""All that a training must remember to be taken up again, in memory and on disk."""

import hashlib
import io
import pickle
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, is_dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from gossamer.core.record import write_bytes
from gossamer.errors import BadInput, CorruptFile
from gossamer.train.distillation import LossTerm, described_term
from gossamer.train.hyperparameters import Training


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """One row of the history.

    Attributes:
        epoch: counted from 1.
        loss: mean over the steps.
        score: the metric's value on validation data; None where it was not evaluated.
        lr: of the last step.
        seconds: that it took.

    Example:
        >>> Epoch(epoch=1, loss=0.4, score=0.9, lr=0.1, seconds=2.0).score
        0.9
    """

    epoch: int
    loss: float
    score: float | None
    lr: float
    seconds: float


@dataclass
class Numbers:
    """Where the training stands: the next step is `batch` of `epoch`, both counted from 0."""

    epoch: int = 0
    batch: int = 0
    loss_sum: float = 0.0
    seconds: float = 0.0
    start_loss: float | None = None
    lr: float | None = None  # the peak, once it is known
    best_score: float | None = None
    best_epoch: int = 0  # 0: before the first step
    stale: int = 0
    lr_scale: float = 1.0
    backed_off: int = 0
    finished: bool = False
    rows: list[dict[str, Any]] = field(default_factory=list)


def weights(model: nn.Module) -> dict[str, Tensor]:
    """All parameters and buffers by name, the saved and the unsaved ones, detached, in place."""
    return {name: t.detach() for name, t in (*model.named_parameters(), *model.named_buffers())}


def copied(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same values in memory of their own, in the same layout."""
    return {name: t.clone() for name, t in tensors.items()}


def fill(tensors: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    """Write values into tensors in place."""
    for name, tensor in tensors.items():
        tensor.copy_(values[name])


class TrainingState:
    """The network in training, its optimizer, the running mean and the best weights, and the numbers."""

    def __init__(self, model: nn.Module, optimizer: Optimizer, training: Training) -> None:
        self.model, self.optimizer, self.decay = model, optimizer, training.ema
        self.numbers = Numbers()
        self.steps = 0
        self.mean: dict[str, Tensor] = copied(weights(model)) if self.decay else {}
        self.best: dict[str, Tensor] = {}

    def average(self) -> None:
        """One step of the running mean: mean <- d mean + (1 - d) w; integer buffers are taken over.

        d = min(decay, (1 + t) / (10 + t)) after t steps, so that a short training forgets where it started.
        """
        if not self.decay:
            return
        d = min(self.decay, (1 + self.steps) / (10 + self.steps))
        self.steps += 1
        now = weights(self.model)
        floats = [name for name, t in now.items() if t.is_floating_point()]
        torch._foreach_lerp_([self.mean[name] for name in floats], [now[name] for name in floats], 1 - d)
        for name in now.keys() - set(floats):
            self.mean[name].copy_(now[name])

    def finite(self) -> bool:
        """Whether all parameters and buffers are finite."""
        floats = (t for t in weights(self.model).values() if t.is_floating_point())
        return all(bool(torch.isfinite(t).all()) for t in floats)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Within, the network has the running mean as its weights, where there is one."""
        if not self.decay:
            yield
            return
        now = weights(self.model)
        kept = copied(now)
        fill(now, self.mean)
        try:
            yield
        finally:
            fill(now, kept)

    def capture(self) -> dict[str, Any]:
        """A copy of everything, for `restore`; tensors, numbers and strings only."""
        return {
            "numbers": asdict(self.numbers),
            "steps": self.steps,
            "model": copied(weights(self.model)),
            "mean": copied(self.mean),
            "best": dict(self.best),  # replaced as a whole, never written into
            "optimizer": _copied_state(self.optimizer.state_dict()),
        }

    def restore(self, captured: Mapping[str, Any]) -> None:
        """Back to a capture."""
        self.numbers = Numbers(**captured["numbers"])
        self.numbers.rows = list(self.numbers.rows)
        self.steps = captured["steps"]
        fill(weights(self.model), captured["model"])
        fill(self.mean, captured["mean"])
        self.best = dict(captured["best"])
        self.optimizer.load_state_dict(_copied_state(captured["optimizer"]))


def _copied_state(state: Any) -> Any:
    if isinstance(state, Tensor):
        return state.clone()
    if isinstance(state, dict):
        return {key: _copied_state(value) for key, value in state.items()}
    if isinstance(state, list):
        return [_copied_state(value) for value in state]
    return state


def fingerprint(
    model: nn.Module,
    training: Training,
    seed: int,
    batches: int,
    after_step: Any = None,
    loss_terms: Sequence[LossTerm] = (),
) -> dict[str, Any]:
    """What must be equal for a checkpoint to be taken up: the options, the weights that the training began with, what
    is taught, and what is done after each step where that is a dataclass."""
    digest = hashlib.blake2b(digest_size=16)
    for name, t in sorted(weights(model).items()):
        digest.update(f"{name} {tuple(t.shape)} {t.dtype}".encode())
        digest.update(t.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    extra: dict[str, Any] = {"after_step": repr(after_step)} if is_dataclass(after_step) else {}
    if loss_terms:
        extra["loss_terms"] = [described_term(term) for term in loss_terms]
    return {**training.options(), **extra, "seed": seed, "batches": batches, "starting weights": digest.hexdigest()}


class Checkpoint:
    """The file of a training; `path` None: no file. Written under a temporary name and renamed."""

    def __init__(self, path: Path | None, identity: Mapping[str, Any], *, writes: bool = True) -> None:
        self.path, self.identity, self.writes = path, dict(identity), writes
        self.written = time.monotonic()

    def read(self) -> dict[str, Any] | None:
        """What `write` wrote; None where there is no file. Nothing but tensors and plain values is admitted."""
        if self.path is None or not self.path.exists():
            return None
        file = io.BytesIO(self.path.read_bytes())
        try:
            content = torch.load(file, map_location="cpu", weights_only=True)
            identity, captured = content["identity"], content["state"]
        except (pickle.UnpicklingError, RuntimeError, OSError, EOFError, KeyError, TypeError, ValueError) as error:
            raise CorruptFile(f"{self.path}: not a readable checkpoint ({error}); delete it to train again") from error
        for key in {**self.identity, **identity}:
            was, now = identity.get(key), self.identity.get(key)
            if was != now:
                raise BadInput(
                    f"{self.path} is the checkpoint of another training: {key} was {was}, now {now}; "
                    "delete it to train again, or give another path"
                )
        assert isinstance(captured, dict)
        return captured

    def write(self, captured: Mapping[str, Any]) -> None:
        """Replace the file."""
        self.written = time.monotonic()
        if self.path is None or not self.writes:
            return
        buffer = io.BytesIO()
        torch.save({"identity": self.identity, "state": dict(captured)}, buffer)
        write_bytes(self.path, buffer.getvalue())

    def due(self, seconds: float) -> bool:
        """Whether the file is older than so many seconds."""
        return self.path is not None and time.monotonic() - self.written >= seconds
