"""Damages what a `.gsr` file says, not its bytes: the parts are changed one by one and written with right checksums."""

import random
import struct
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from benchmarks.robustness._gsr_parts import Parts, fitted, put_together
from gossamer.gsr.format.generated import Rule
from gossamer.gsr.format.graph import (
    DEVICE_OF_INPUT,
    DTYPES,
    FORMATS,
    Graph,
    State,
    Step,
    Value,
)
from gossamer.gsr.format.header import CODED, TensorEntry
from gossamer.gsr.format.names import LEAVES
from gossamer.gsr.format.operations import NAMES, function_of
from gossamer.gsr.format.stored_values import Coding, GeneratedEntry, Width, matrix_shape

NUMBERS = [0, 1, 1, 2, 3, 4, 5, 7, 8, 16, 31, 36, 64, 127, 128, 255, 256, 1000, 4096]
LARGE = [
    2**16,
    2**18,
    2**20,
    2**22 - 1,
    2**24,
    2**26,
    2**28,
    2**31 - 1,
    2**31,
    2**32,
    2**40,
    2**40 + 1,
    2**62,
    2**63 - 1,
]
TEXTS = [
    "",
    "zeros",
    "border",
    "constant",
    "reflect",
    "tanh",
    "mean",
    "same",
    "ij",
    "i,j->ij",
    "ij,jk,kl->il",
    "...",
    "ab->ba",
]
WORDS = ["", "weight", "bias", "training", "forward", "_modules", "0", "a" * 900, "é" * 300, "__class__", "_graph", "T"]
GREEDY = [
    "repeat", "expand", "full", "arange", "pad", "avg_pool2d", "max_pool2d", "py.pow", "py.mul", "py.add", "kron",
    "outer", "einsum", "one_hot", "cumsum", "repeat_interleave.self_int", "tile", "eye", "zeros", "linspace", "matmul",
    "im2col", "adaptive_avg_pool2d", "upsample_bicubic2d.vec", "constant_pad_nd", "unbind.int", "split.Tensor", "chunk",
    "batch_norm", "py.getitem", "zero_", "copy_", "sym_numel", "cat", "stack", "linalg_norm", "cdist", "conv2d",
]  # fmt: skip


def mutated(whole: Parts, random_: random.Random) -> bytes:
    """A file with one to three of its parts changed, so that it says something else, with right checksums."""
    found = replace(whole, names=[*whole.names], entries=[*whole.entries], sections=[*whole.sections])
    for _ in range(random_.choice((1, 1, 2, 3))):
        random_.choice(MUTATIONS)(found, random_)
    try:
        return put_together(fitted(found) if random_.random() < 0.7 else found)
    except (ValueError, OverflowError, TypeError, AttributeError, KeyError, struct.error):
        return b""  # what no file can say


def number(random_: random.Random) -> int:
    """A number that a file may hold: mostly small, sometimes at a border, sometimes beyond it."""
    chosen = random_.choice(NUMBERS if random_.random() < 0.7 else LARGE)
    return max(0, chosen + random_.choice((0, 0, 0, 1, -1)))


def _shape(random_: random.Random) -> tuple[int, ...]:
    return tuple(number(random_) for _ in range(random_.choice((0, 1, 1, 2, 2, 3, 4, 5, 33))))


def _entry(found: Parts, random_: random.Random) -> None:
    """A field of a tensor, a tensor more or less, or two in another order."""
    if not found.entries:
        return
    at = random_.randrange(len(found.entries))
    entry = found.entries[at]
    match random_.randrange(12):
        case 0 | 1:
            entry = replace(entry, shape=_shape(random_))
        case 2 | 3:
            shape = list(entry.shape) or [1]
            shape[random_.randrange(len(shape))] = number(random_)
            entry = replace(entry, shape=tuple(shape))
        case 4:
            dtype, width = random_.choice(DTYPES), random_.choice([Width.FLOAT32, Width.OWN, entry.width])
            entry = replace(entry, dtype=dtype, width=width)
        case 5:
            entry = replace(entry, part=number(random_), lag=number(random_) & 0xFFFF)
        case 6:
            entry = replace(
                entry, largest=tuple(min(number(random_), 1 << 15) for _ in range(random_.choice((1, 1, 2, 9))))
            )
        case 7:
            entry = replace(entry, count=number(random_), zero=number(random_))
        case 8:
            entry = _generate(found, random_)
        case 9:
            coding = random_.choice(
                [Coding.ZEROS, Coding.CONSTANT, Coding.GRID, Coding.ROWS, Coding.CODEBOOK, Coding.TRELLIS]
            )
            largest = (random_.choice((0, 0, 1)),) if coding in CODED else ()
            count = {Coding.CONSTANT: 1, Coding.GRID: int(entry.dtype.is_floating_point), Coding.TRELLIS: 1}.get(
                coding, 1
            )
            count = matrix_shape(entry.shape)[0] if coding == Coding.ROWS else count
            entry = TensorEntry(coding=coding, dtype=entry.dtype, shape=entry.shape, count=count, largest=largest)
        case 10:
            entry = TensorEntry(
                coding=Coding.SAME, dtype=entry.dtype, shape=entry.shape, same=random_.randrange(at + 1)
            )
        case _:
            found.entries += [entry] * random_.choice((1, 1, 1, 3, 3, 3, 20, 2000))
            found.unnamed = len(found.entries) - len(found.names)
    found.entries[at] = entry


def _generate(found: Parts, random_: random.Random) -> TensorEntry:
    """A tensor that is made of others, which are added and fit where that is possible."""
    rule = random_.choice(list(Rule))
    outputs, inputs, kernel = number(random_), number(random_), random_.choice((1, 1, 1, 2))
    lines, entries, first = outputs * kernel, random_.choice((1, 1, 2, 300)), len(found.entries)
    width = random_.choice((1, 2, max(1, inputs), number(random_)))
    stages = random_.choice((1, 2, number(random_)))
    books = -(-inputs // max(1, width))
    shape = {
        Rule.HASHED: (number(random_),),
        Rule.PRODUCT: (books, entries, width),
        Rule.RESIDUAL: (stages, entries, inputs),
    }[rule]
    indices = None if rule == Rule.HASHED else first + 1
    zeros = {"coding": Coding.ZEROS}
    found.entries.append(TensorEntry(**zeros, dtype=torch.float32, shape=shape))
    if indices is not None:
        rows = books if rule == Rule.PRODUCT else stages
        found.entries.append(
            TensorEntry(**zeros, dtype=random_.choice((torch.uint8, torch.int32)), shape=(rows, lines))
        )
    found.unnamed = len(found.entries) - len(found.names)
    own = (outputs, inputs) if kernel == 1 else (outputs, inputs, kernel)
    generated = GeneratedEntry(rule=rule, seed=number(random_), numbers=first, indices=indices)
    return TensorEntry(coding=Coding.GENERATED, dtype=torch.float32, shape=own, generated=generated)


def _names(found: Parts, random_: random.Random) -> None:
    """A name, deeper modules, or very many names."""
    match random_.randrange(5):
        case 0 if found.names:
            at = random_.randrange(len(found.names))
            shared, new, known, _, buffer = found.names[at]
            found.names[at] = (shared, new, known, random_.choice(WORDS), buffer)
        case 1:
            found.names.append((0, [random_.choice(WORDS)] * min(number(random_), 5000), 0, "x", True))
        case 2:
            found.names.append((0, ["a" * random_.choice((1, 1000))] * random_.choice((1, 60)), 0, "x", True))
            again = (random_.choice((1, 7, 60)), [], random_.randrange(8), "y", False)
            found.names += [again] * random_.choice((1, 1, 1, 9, 9, 100, 5000))
        case 3:
            found.names.append((0, [], 0, random_.choice(WORDS), bool(random_.randrange(2))))
        case _:
            found.names.append((number(random_), [], random_.randrange(len(LEAVES)), "z", False))
    if random_.random() < 0.5:
        missing = len(found.names) - len(found.entries)
        found.entries += [TensorEntry(coding=Coding.ZEROS, dtype=torch.float32, shape=(1,))] * max(0, missing)
        found.unnamed = max(0, len(found.entries) - len(found.names))
    else:
        found.unnamed = number(random_)


def _argument(values: int, states: int, random_: random.Random, deep: int = 0) -> Any:
    match random_.randrange(13):
        case 0 | 1 | 2 if values:
            return Value(max(0, values - 1 - min(random_.randrange(9), random_.randrange(values + 1))))
        case 3 if states:
            return State(random_.randrange(states))
        case 4 | 5:
            return number(random_)
        case 6:
            return -number(random_)
        case 7:
            return random_.choice((0.0, 0.5, 1e-5, 1e300, float("inf"), float("nan"), -1.0))
        case 8:
            return random_.choice((None, True, False))
        case 9:
            return random_.choice(TEXTS)
        case 10:
            return random_.choice([*DTYPES, *FORMATS, DEVICE_OF_INPUT, torch.strided])
        case _ if deep < 3:
            return [_argument(values, states, random_, deep + 1) for _ in range(random_.choice((0, 1, 1, 2, 2, 4, 9)))]
        case _:
            return 1


def _fitting(kind: str, values: int, states: int, random_: random.Random) -> Any:
    """An argument of the type that a schema asks for."""
    several = random_.choice((1, 2, 2, 3, 4))
    if "Tensor" in kind:
        one: Callable[[], Any] = lambda: (  # noqa: E731
            State(random_.randrange(states))
            if states and random_.random() < 0.3
            else Value(random_.randrange(max(1, values)))
        )
        return [one() for _ in range(several)] if "List" in kind else one()
    if "List" in kind:
        return [number(random_) * random_.choice((1, 1, 1, -1)) for _ in range(several)]
    if "bool" in kind:
        return random_.random() < 0.5
    if "int" in kind or "number" in kind or "Scalar" in kind:
        return number(random_) * random_.choice((1, 1, 1, -1))
    return _argument(values, states, random_)


def _step(values: int, states: int, random_: random.Random) -> Step:
    """A step whose arguments are of the right types, most of the time."""
    op = random_.choice(GREEDY if random_.random() < 0.5 else list(NAMES))
    schema = getattr(function_of(op), "_schema", None)
    if schema is None or random_.random() < 0.2:
        return Step(op, tuple(_argument(values, states, random_) for _ in range(random_.choice((0, 1, 2, 2, 3)))), {})
    wanted = [a for a in schema.arguments if not a.kwarg_only]
    required = sum(not a.has_default_value() for a in wanted)
    count = random_.randint(required, len(wanted))
    args = tuple(_fitting(str(a.type), values, states, random_) for a in wanted[:count])
    named = [a for a in schema.arguments if a.kwarg_only] if random_.random() < 0.2 else []
    return Step(op, args, {a.name: _fitting(str(a.type), values, states, random_) for a in named})


def _graph(found: Parts, random_: random.Random) -> None:
    """Steps changed, added, left out; a new graph of greedy steps; another output."""
    states = len(found.entries)
    graph = found.graph or Graph(1, (), Value(0))
    steps = list(graph.steps)
    match random_.randrange(7):
        case 0 | 1 if steps:
            at = random_.randrange(len(steps))
            args = list(steps[at].args) or [0]
            args[random_.randrange(len(args))] = _argument(graph.inputs + at, states, random_)
            steps[at] = replace(steps[at], args=tuple(args))
        case 2 if steps:
            at = random_.randrange(len(steps))
            steps[at] = replace(steps[at], op=random_.choice(NAMES))
        case 3:
            at = random_.randrange(len(steps) + 1)
            steps[at:at] = [_step(graph.inputs + at, states, random_)]
        case 4 if steps:
            steps += [random_.choice(steps)] * random_.choice((1, 1, 1, 1, 20, 20, 20, 3000))
        case _:
            graph = Graph(random_.choice((1, 1, 1, 2)), (), Value(0))
            steps = []
            for place in range(random_.choice((1, 2, 3, 6))):
                steps.append(_step(graph.inputs + place, states, random_))
    output = Value(graph.inputs + len(steps) - 1) if random_.random() < 0.8 else _argument(len(steps), states, random_)
    found.graph = Graph(graph.inputs, tuple(steps), output)


def _structure(found: Parts, random_: random.Random) -> None:
    """Another text in the place of what a network was changed by."""
    texts = ("{}", "[]", "x", "1e999", "[" * 5000, '{"a": ' * 3000, "\0", found.structure[: len(found.structure) // 2])
    found.structure = random_.choice(texts) * random_.choice((1, 1, 100))


def _section(found: Parts, random_: random.Random) -> None:
    """A section of another kind, length, count or content; one more or less."""
    if not found.sections:
        found.sections.append((random_.randrange(6), random_.randbytes(random_.choice((0, 4, 40))), number(random_), 0))
        return
    at = random_.randrange(len(found.sections))
    kind, payload, pieces, checked = found.sections[at]
    match random_.randrange(6):
        case 0:
            kind = random_.randrange(6)
        case 1:
            payload = random_.choice((b"", payload[: len(payload) // 2], payload + b"\0\0", bytes(len(payload))))
        case 2:
            changed = bytearray(payload or b"\0")
            changed[random_.randrange(len(changed))] ^= 1 << random_.randrange(8)
            payload = bytes(changed)
        case 3:
            pieces = number(random_)
        case 4:
            found.sections += [found.sections[at]] * random_.choice((1, 3, 300))
        case _:
            checked = number(random_) & 0xFFFFFFFF
    found.sections[at] = (kind, payload, pieces, checked)


MUTATIONS: list[Callable[[Parts, random.Random], None]] = [
    _entry,
    _entry,
    _entry,
    _names,
    _graph,
    _graph,
    _graph,
    _section,
]
