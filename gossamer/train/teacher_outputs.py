"""What a teacher says, on disk: asked once for each input, for all epochs, runs and students that see it again.

An answer is found by the bytes of its input, so that neither order nor the name of the data matter: what was augmented
alike (the same seed, epoch and batch) is found, what was not is asked for. Numbers are kept in 16 bits
with a scale for each sample, which is finer than float16 for logits; a training sees the kept numbers from the first
time on, so that it does not depend on what was there before.
"""

import hashlib
import json
import time
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gossamer.core.copies import state_of
from gossamer.core.folder import make_folder
from gossamer.core.record import write_bytes, write_text
from gossamer.errors import BadInput, CorruptFile

KEY_BYTES = 16
SHARD_ROWS = 16_384  # written as soon as there are so many
SHARD_SECONDS = 30.0  # or after so long
LARGEST = 32_767
LAYOUT = "layout.json"

Ask = Callable[..., Any]


class TeacherOutputs:
    """The outputs of one teacher in a folder of their own: `layout.json`, and shards that are written once and mapped
    into memory. Several processes and jobs may add to it at a time.

    Logits that there are already make a teacher, too: `outputs.keep((x,), logits)` for each batch of inputs, as the
    training sees them, then `outputs.flush()`; the folder is what `gossamer.distill` and `--teacher` take.
    """

    def __init__(self, folder: Path) -> None:
        make_folder(folder)
        self.folder = folder
        self.layout: Any = None
        self.leaves: list[tuple[str, tuple[int, ...]]] = []
        self.row: np.dtype[Any] | None = None
        self.shards: list[Any] = []
        self.place: dict[bytes, tuple[int, int]] = {}
        self.filled = 0  # rows of the last shard that are not on disk yet
        self.written = time.monotonic()
        if (folder / LAYOUT).exists():
            self._open()

    def __deepcopy__(self, memo: dict[int, Any]) -> "TeacherOutputs":
        return self

    def __len__(self) -> int:
        return len(self.place)

    @property
    def row_bytes(self) -> int:
        """What the answer for one sample takes; 0 as long as none is known."""
        return 0 if self.row is None else self.row.itemsize

    def __call__(self, inputs: tuple[Any, ...], ask: Ask | None) -> Any:
        """What the teacher gives for a batch, each input's first dimension being the samples. ask: what to call for
        samples that are not there, with inputs of those alone; None: they are an error (BadInput)."""
        keys = keys_of(inputs)
        missing = [i for i, key in enumerate(keys) if key not in self.place]
        if missing:
            if ask is None:
                what = (
                    f"{self.folder} has no answer for {len(missing)} of {len(keys)} samples: they are other data, or "
                )
                raise BadInput(
                    f"{what}augmented otherwise; take the same seed, augment nothing, or give the teacher itself",
                    shell=f"{what}augmented otherwise; take the same --seed, --no-augment, or give the teacher itself",
                )
            chosen = inputs if len(missing) == len(keys) else tuple(x[missing] for x in inputs)
            self._note([keys[i] for i in missing], ask(*chosen))
        device = next(x.device for x in inputs if isinstance(x, Tensor))
        return self._read(keys, device)

    def keep(self, inputs: tuple[Any, ...], outputs: Any) -> None:
        """Note what a teacher gave for a batch."""
        self._note(keys_of(inputs), outputs)

    def flush(self) -> None:
        """Write what is not on disk yet."""
        self.written = time.monotonic()
        if not self.filled:
            return
        rows = self.shards[-1][: self.filled].copy()
        buffer = BytesIO()
        np.save(buffer, rows, allow_pickle=False)
        data = buffer.getvalue()
        write_bytes(self.folder / f"shard-{hashlib.blake2b(data, digest_size=8).hexdigest()}.npy", data)
        self.shards[-1], self.filled = rows, 0

    def _note(self, keys: list[bytes], outputs: Any) -> None:
        leaves: list[Tensor] = []
        known = {
            "layout": describe_inputs(outputs, leaves),
            "leaves": [(teacher_kind(x), tuple(x.shape[1:])) for x in leaves],
        }
        if self.row is None:
            self._take(known)
            write_text(self.folder / LAYOUT, json.dumps(known))
        elif known != {"layout": self.layout, "leaves": self.leaves}:
            raise BadInput(f"{self.folder} holds outputs of another form than {known}; name another folder")
        fresh = {key: i for i, key in enumerate(keys)}  # one of equal samples
        rows = np.zeros(len(fresh), dtype=self.row)
        rows["key"] = np.frombuffer(b"".join(fresh), dtype=f"V{KEY_BYTES}")
        for number, leaf in enumerate(leaves):
            if not leaf.dim() or len(leaf) != len(keys):
                raise BadInput("outputs can be kept of teachers that give every output for each sample")
            values = leaf.detach().cpu()[list(fresh.values())]
            if self.leaves[number][0] == "float":
                scale = values.float().flatten(1).abs().amax(1) if values[0].numel() else torch.zeros(len(values))
                if not bool(scale.isfinite().all()):
                    raise BadInput("the teacher gives numbers that are not finite")
                scale = scale.clamp_min(torch.finfo(torch.float32).tiny) / LARGEST
                codes = (values.float() / scale.view(-1, *[1] * (values.dim() - 1))).round()
                rows[f"scale{number}"], rows[f"value{number}"] = scale.numpy(), codes.to(torch.int16).numpy()
            else:
                rows[f"value{number}"] = values.numpy()
        self._add(rows)

    def _add(self, rows: Any) -> None:
        if self.filled and self.filled + len(rows) > len(self.shards[-1]):
            self.flush()
        if not self.filled:
            self.shards.append(np.zeros(max(SHARD_ROWS, len(rows)), dtype=self.row))
        number, start = len(self.shards) - 1, self.filled
        self.filled += len(rows)
        self.shards[-1][start : self.filled] = rows
        self._place(rows, number, start)
        if self.filled == len(self.shards[-1]) or time.monotonic() - self.written > SHARD_SECONDS:
            self.flush()

    def _place(self, rows: Any, number: int, start: int) -> None:
        keys = np.ascontiguousarray(rows["key"]).tobytes()
        for i in range(len(rows)):
            self.place[keys[KEY_BYTES * i : KEY_BYTES * (i + 1)]] = (number, start + i)

    def _read(self, keys: list[bytes], device: torch.device) -> Any:
        places = np.array([self.place[key] for key in keys])
        rows = np.empty(len(keys), dtype=self.row)
        for number in np.unique(places[:, 0]):
            here = places[:, 0] == number
            rows[here] = self.shards[number][places[here, 1]]
        leaves = []
        for number, (kind, _) in enumerate(self.leaves):
            values = torch.from_numpy(np.ascontiguousarray(rows[f"value{number}"]))
            if kind == "float":
                scale = torch.from_numpy(np.ascontiguousarray(rows[f"scale{number}"]))
                values = values.float() * scale.view(-1, *[1] * (values.dim() - 1))
            leaves.append(values.to(device))
        return rebuilt(self.layout, leaves)

    def _open(self) -> None:
        try:
            self._take(json.loads((self.folder / LAYOUT).read_text(encoding="utf-8")))
            for path in sorted(self.folder.glob("shard-*.npy")):
                rows = np.load(path, mmap_mode="r", allow_pickle=False)
                if rows.dtype != self.row or rows.ndim != 1:
                    raise ValueError(f"{path.name} has other rows than {LAYOUT} says")
                self.shards.append(rows)
                self._place(rows, len(self.shards) - 1, 0)
        except (ValueError, KeyError, TypeError, OSError, EOFError) as error:
            raise CorruptFile(f"{self.folder}: damaged outputs of a teacher ({error}); delete the folder") from error

    def _take(self, known: dict[str, Any]) -> None:
        self.layout, self.leaves = known["layout"], [(kind, tuple(shape)) for kind, shape in known["leaves"]]
        parts: list[Any] = [("key", f"V{KEY_BYTES}")]
        for number, (kind, shape) in enumerate(self.leaves):
            if kind == "float":
                parts.append((f"scale{number}", "<f4"))
            parts.append((f"value{number}", "<i2" if kind == "float" else np.dtype(kind).str, shape))
        self.row = np.dtype(parts)


def keys_of(inputs: tuple[Any, ...]) -> list[bytes]:
    """A digest of the bytes of each sample of a batch."""
    if not inputs or not all(isinstance(x, Tensor) and x.dim() and len(x) == len(inputs[0]) for x in inputs):
        raise BadInput("outputs can be kept for inputs that are tensors with the samples in their first dimension")
    columns = [x.detach().cpu().contiguous().flatten(1).view(torch.uint8).numpy() for x in map(_flat, inputs)]
    form = "".join(f"{x.dtype}{tuple(x.shape[1:])}" for x in inputs).encode()
    keys = []
    for sample in zip(*columns):
        digest = hashlib.blake2b(form, digest_size=KEY_BYTES)
        for part in sample:
            digest.update(part)
        keys.append(digest.digest())
    return keys


def _flat(x: Tensor) -> Tensor:
    return x[:, None] if x.dim() == 1 else x


def teacher_kind(x: Tensor) -> str:
    """How its numbers are kept."""
    return "float" if x.is_floating_point() else str(x.dtype).removeprefix("torch.")


def describe_inputs(value: Any, leaves: list[Tensor]) -> Any:
    """The structure of outputs as JSON; their tensors are appended to `leaves`, and stand in it as their numbers."""
    match value:
        case Tensor():
            leaves.append(value)
            return len(leaves) - 1
        case tuple() | list():
            return [type(value).__name__ == "tuple", [describe_inputs(one, leaves) for one in value]]
        case dict():
            return {str(key): describe_inputs(one, leaves) for key, one in value.items()}
    raise BadInput(f"outputs can be kept of tensors, tuples, lists and dicts of them, not of {type(value).__name__}")


def rebuilt(layout: Any, leaves: list[Tensor]) -> Any:
    """The outputs that `describe_inputs` described."""
    match layout:
        case int():
            return leaves[layout]
        case [bool() as is_tuple, list() as inner]:
            parts = [rebuilt(one, leaves) for one in inner]
            return tuple(parts) if is_tuple else parts
        case dict():
            return {key: rebuilt(one, leaves) for key, one in layout.items()}
    raise CorruptFile(f"{LAYOUT}: {layout!r} is no structure of outputs")


def teacher_identity(teacher: nn.Module) -> str:
    """A digest of what a teacher computes with: its modules as they print, and its weights."""
    digest = hashlib.blake2b(repr(teacher).encode(), digest_size=16)
    for name, tensor in sorted(state_of(teacher).items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
