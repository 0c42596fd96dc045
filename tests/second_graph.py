"""The graph of a `.gsr` file for the second reader, and the numbers and names that both its parts use."""

import operator
import re
import struct
from pathlib import Path
from typing import Any

import second_decoder as second
import torch

PAGE = (Path(__file__).parents[1] / "docs" / "format.md").read_text()
OPERATIONS = [
    name
    for row in re.findall(r"^\| \d+ \| ((?:`[^`]+` ?)+)\|$", PAGE, re.MULTILINE)
    for name in re.findall("`(.*?)`", row)
]
DTYPES = ["float32", "float16", "bfloat16", "float64", "int8", "int16", "int32", "int64", "uint8", "bool"]
DTYPES += ["complex64", "complex128", "float8_e4m3fn", "float8_e5m2"]


class Bytes(second.Bytes):
    """Numbers and texts of the page."""

    def u8(self) -> int:
        return self.take(1)[0]

    def u32(self) -> int:
        return self.numbers(1, 4)[0]

    def varint(self) -> int:
        found = shift = 0
        while True:
            byte = self.u8()
            found |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return found

    def signed(self) -> int:
        n = self.varint()
        return n // 2 if n % 2 == 0 else -((n + 1) // 2)

    def text(self) -> str:
        return self.take(self.varint()).decode()


class Graph:
    """The steps, which `run` executes."""

    def __init__(self, data: Bytes) -> None:
        self.data, self.next = data, 0
        self.inputs = self.so_far = data.varint()
        self.steps: list[tuple[str, list[Any], dict[str, Any]]] = []
        for _ in range(data.varint()):
            name, n = OPERATIONS[data.varint()], data.varint()
            args = [self.argument() for _ in range(n >> 1)]
            self.steps.append((name, args, self.argument() if n % 2 else {}))
            self.so_far += 1
        self.output = self.argument()

    def state(self, number: int) -> tuple[str, int]:
        self.next = number + 1
        return "state", number

    def argument(self) -> Any:
        """A tensor as ("state" or "value", number), the device as ("device", 0), a list as ["list", ...], a tuple as
        ["tuple", ...]."""
        data = self.data
        code = data.u8()
        match code:
            case 0 | 1 | 2:
                return [None, True, False][code]
            case 3:
                return "device", 0
            case 4:
                return struct.unpack("<d", data.take(8))[0]
            case 5:
                m, e = data.signed(), data.signed()
                return float(f"{m}e{e}")
            case 6:
                return data.signed()
            case 7:
                return data.text()
            case 8:
                return getattr(torch, DTYPES[data.u8()])
            case 9:
                return torch.strided
            case 10:
                names = ["contiguous_format", "preserve_format", "channels_last", "channels_last_3d"]
                return getattr(torch, names[data.u8()])
            case 11 | 12:
                return [["list", "tuple"][code - 11], *(self.argument() for _ in range(data.varint()))]
            case 13:
                return {data.text(): self.argument() for _ in range(data.varint())}
            case 14:
                return self.state(self.next + data.signed())
            case 15:
                return "value", self.so_far - 1 - data.signed()
        if code >= 48:
            return code - 48
        if code >= 40:
            return ["list", *(self.argument() for _ in range(code - 39))]
        if code >= 32:
            return "value", self.so_far - 1 - (code - 32)
        return self.state(self.next + code - 24)

    def run(self, states: list[torch.Tensor], *inputs: torch.Tensor) -> Any:
        values: list[Any] = list(inputs)

        def fill(argument: Any) -> Any:
            match argument:
                case ("state", int(number)):
                    return states[number]
                case ("value", int(number)):
                    return values[number]
                case ("device", 0):
                    return inputs[0].device
                case ["list", *items]:
                    return [fill(item) for item in items]
                case ["tuple", *items]:
                    return tuple(fill(item) for item in items)
                case dict():
                    return {key: fill(item) for key, item in argument.items()}
            return argument

        for name, args, kwargs in self.steps:
            values.append(function_of(name)(*map(fill, args), **fill(kwargs)))
        return fill(self.output)


def function_of(name: str) -> Any:
    if name.startswith("py."):
        return getattr(operator, name.removeprefix("py."))
    packet, _, overload = name.partition(".")
    return getattr(getattr(torch.ops.aten, packet), overload or "default")
