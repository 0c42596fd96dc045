"""A network as a list of ATen operations, and its few bytes in a `.gsr`."""

import struct
from dataclasses import dataclass
from typing import Any

import torch

from gossamer.gsr.format.ledger import Limit
from gossamer.gsr.format.operations import CODES, NAMES
from gossamer.gsr.format.stream import Reader, Writer

MOST_STEPS, MOST_ITEMS, MOST_DEPTH, MOST_TEXT = 1 << 17, 1 << 12, 6, 64
INT = (1 << 63) - 1
NONE, TRUE, FALSE, DEVICE, FLOAT, DECIMAL, INTEGER, TEXT, DTYPE, LAYOUT, FORMAT = range(11)
LIST, TUPLE, DICT, STATE, FAR = range(11, 16)
NEXT, PREVIOUS, LISTS, SMALL = 24, 32, 40, 48  # first codes of runs: 8 states ahead, 8 values back, lists of 1-8, ints
DTYPES: tuple[torch.dtype, ...] = (
    torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int8, torch.int16, torch.int32, torch.int64,
    torch.uint8, torch.bool, torch.complex64, torch.complex128, torch.float8_e4m3fn, torch.float8_e5m2,
)  # fmt: skip
FORMATS = (torch.contiguous_format, torch.preserve_format, torch.channels_last, torch.channels_last_3d)


@dataclass(frozen=True, slots=True)
class Value:
    """What an input or a step gives: inputs come first, then every step in order."""

    index: int


@dataclass(frozen=True, slots=True)
class State:
    """A stored tensor, by its place in the table of tensors."""

    index: int


class Device:
    """Stands for the device of the network's first input."""


DEVICE_OF_INPUT = Device()
_PLAIN: dict[int, Any] = {NONE: None, TRUE: True, FALSE: False, DEVICE: DEVICE_OF_INPUT, LAYOUT: torch.strided}


@dataclass(frozen=True, slots=True)
class Step:
    """One operation. args and kwargs hold Values, States, plain values, and lists of them."""

    op: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Graph:
    """inputs: how many tensors go in. output: a Value, or lists, tuples and dictionaries of them."""

    inputs: int
    steps: tuple[Step, ...]
    output: Any


def write_graph(graph: Graph, writer: Writer) -> None:
    """Append the graph to a header."""
    writer.varint(graph.inputs)
    writer.varint(len(graph.steps))
    written = _Args(writer)
    for number, step in enumerate(graph.steps):
        written.values = graph.inputs + number
        writer.varint(CODES[step.op])
        writer.varint(2 * len(step.args) + bool(step.kwargs))
        for value in step.args:
            written.put(value)
        if step.kwargs:
            written.put(step.kwargs)
    written.values = graph.inputs + len(graph.steps)
    written.put(graph.output)


class _Args:
    """Arguments, one code each and what it needs. States count from the last one used, values back from the newest."""

    def __init__(self, writer: Writer) -> None:
        self.writer, self.state, self.values = writer, 0, 0

    def put(self, value: Any) -> None:
        writer = self.writer
        match value:
            case None:
                writer.byte(NONE)
            case bool():
                writer.byte(TRUE if value else FALSE)
            case Value(index):
                back = self.values - 1 - index
                _short(writer, PREVIOUS, back, FAR)
            case State(index):
                ahead = index - self.state
                self.state = index + 1
                _short(writer, NEXT, ahead, STATE)
            case int() if 0 <= value < 256 - SMALL:
                writer.byte(SMALL + value)
            case int():
                writer.byte(INTEGER)
                writer.signed(value)
            case float():
                _put_float(writer, value)
            case str():
                writer.byte(TEXT)
                writer.text(value)
            case torch.dtype():
                writer.byte(DTYPE)
                writer.byte(DTYPES.index(value))
            case torch.memory_format():
                writer.byte(FORMAT)
                writer.byte(FORMATS.index(value))
            case torch.layout():
                writer.byte(LAYOUT)
            case Device():
                writer.byte(DEVICE)
            case dict():
                writer.byte(DICT)
                writer.varint(len(value))
                for key, item in value.items():
                    writer.text(key)
                    self.put(item)
            case list() | tuple():
                self._put_items(value)
            case _:
                raise TypeError(type(value).__name__)

    def _put_items(self, items: list[Any] | tuple[Any, ...]) -> None:
        if isinstance(items, list) and 1 <= len(items) <= 8:
            self.writer.byte(LISTS + len(items) - 1)
        else:
            self.writer.byte(LIST if isinstance(items, list) else TUPLE)
            self.writer.varint(len(items))
        for item in items:
            self.put(item)


def _short(writer: Writer, first: int, number: int, otherwise: int) -> None:
    if 0 <= number < 8:
        writer.byte(first + number)
    else:
        writer.byte(otherwise)
        writer.signed(number)


def _put_float(writer: Writer, value: float) -> None:
    """As digits and a power of ten where that is short and exact: 1e-05 is (1, -5)."""
    sign, digits, exponent = (1, "0", 0) if value == 0 else _decimal(value)
    whole = sign * int(digits)
    if len(digits) <= 9 and struct.pack("<d", float(f"{whole}e{exponent}")) == struct.pack("<d", value):
        writer.byte(DECIMAL)
        writer.signed(whole)
        writer.signed(exponent)
    else:
        writer.byte(FLOAT)
        writer.data += struct.pack("<d", value)


def _decimal(value: float) -> tuple[int, str, int]:
    mantissa, _, power = f"{abs(value):.16e}".partition("e")
    shortest = repr(abs(value))
    if "n" in shortest:  # inf, nan
        return 1, "0" * 20, 0
    mantissa, _, power = shortest.partition("e")
    whole, _, fraction = mantissa.partition(".")
    digits = (whole + fraction).lstrip("0")
    stripped = digits.rstrip("0")
    exponent = int(power or 0) - len(fraction) + len(digits) - len(stripped)
    return (-1 if value < 0 else 1), stripped, exponent


def read_graph(reader: Reader, tensors: int) -> Graph:
    """The graph at the reader's place; `tensors` is how many are stored. Whether it may run, `safety.unsafe` tells."""
    inputs = reader.varint(1 << 8)
    if inputs == 0:
        reader.fail("the network has no inputs")
    steps: list[Step] = []
    read = _Read(reader, tensors)
    for number in range(reader.varint(MOST_STEPS)):
        read.values = inputs + number
        code = reader.varint(len(NAMES) - 1)
        count = reader.varint(2 * MOST_ITEMS)
        reader.ledger.charge(Limit.GRAPH, 1 + count // 2)
        args = tuple(read.get() for _ in range(count // 2))
        kwargs = read.get() if count % 2 else {}
        if not isinstance(kwargs, dict):
            reader.fail("named arguments without names")
        steps.append(Step(NAMES[code], args, kwargs))
    read.values = inputs + len(steps)
    return Graph(inputs, tuple(steps), read.get())


class _Read:
    def __init__(self, reader: Reader, tensors: int) -> None:
        self.reader, self.tensors = reader, tensors
        self.state, self.values, self.depth = 0, 0, 0

    def get(self) -> Any:
        code = self.reader.byte()
        if code >= SMALL:
            return code - SMALL
        if code >= LISTS:
            return self._items(code - LISTS + 1)
        if code >= PREVIOUS:
            return self._value(code - PREVIOUS)
        if code >= NEXT:
            return self._state(code - NEXT)
        return self._long(code)

    def _long(self, code: int) -> Any:
        """What needs more than its code."""
        reader = self.reader
        if code in _PLAIN:
            return _PLAIN[code]
        if code == FLOAT:
            return struct.unpack("<d", reader.take(8))[0]
        if code == DECIMAL:
            return float(f"{reader.signed(10**9)}e{reader.signed(400)}")
        if code == INTEGER:
            return reader.signed(INT)
        if code == TEXT:
            return reader.text(MOST_TEXT)
        if code in (DTYPE, FORMAT):
            return self._of(DTYPES if code == DTYPE else FORMATS)
        if code in (LIST, TUPLE):
            items = self._items(reader.varint(MOST_ITEMS))
            return items if code == LIST else tuple(items)
        if code == DICT:
            return self._dictionary()
        if code == STATE:
            return self._state(reader.signed(1 << 31))
        if code == FAR:
            return self._value(reader.signed(1 << 31))
        return reader.fail(f"argument code {code} is unknown")

    def _of(self, table: tuple[Any, ...]) -> Any:
        index = self.reader.byte()
        if index >= len(table):
            self.reader.fail(f"type {index} is unknown")
        return table[index]

    def _deeper(self, count: int) -> None:
        self.reader.ledger.charge(Limit.GRAPH, count)
        self.depth += 1
        if self.depth > MOST_DEPTH:
            self.reader.fail(f"lists are nested more than {MOST_DEPTH} deep")

    def _items(self, count: int) -> list[Any]:
        self._deeper(count)
        items = [self.get() for _ in range(count)]
        self.depth -= 1
        return items

    def _dictionary(self) -> dict[str, Any]:
        count = self.reader.varint(MOST_ITEMS)
        self._deeper(count)
        items = {self.reader.text(MOST_TEXT): self.get() for _ in range(count)}
        self.depth -= 1
        return items

    def _value(self, back: int) -> Value:
        if not 0 <= back < self.values:
            self.reader.fail("an operation takes what does not exist yet")
        return Value(self.values - 1 - back)

    def _state(self, ahead: int) -> State:
        index = self.state + ahead
        if not 0 <= index < self.tensors:
            self.reader.fail("an operation takes a tensor that is not stored")
        self.state = index + 1
        return State(index)


def values_in(value: Any) -> list[int]:
    """The indices of all Values in an argument."""
    match value:
        case Value(index):
            return [index]
        case list() | tuple():
            return [index for item in value for index in values_in(item)]
        case dict():
            return [index for item in value.values() for index in values_in(item)]
        case _:
            return []
