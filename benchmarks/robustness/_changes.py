"""Changes of what `.pt2` files, `.onnx` files and recipes say: values of JSON, fields of messages, keys of mappings."""

import copy
import io
import json
import random
import zipfile
from typing import Any

import onnx
import yaml

HOSTILE: tuple[Any, ...] = (
    0, 1, -1, 2, 7, 64, 255, 1 << 31, (1 << 31) - 1, 1 << 40, 1 << 62, (1 << 63) - 1, -(1 << 63), 1 << 70, 10**30,
    0.0, -0.5, 1e300, True, False, None, "", "x", "../../etc/passwd", "victim", "NaN", "Infinity", "9**9**9**9",
    "torch.ops.aten.fill_.Scalar", "torch.ops.aten.copy_.default", "torch.ops.aten.from_file.default",
    "torch.ops.aten.full.default", "torch.ops.aten.repeat.default", "torch.ops.aten.expand.default",
    "torch.ops.aten.chunk.default", "torch.ops.aten.dropout.default", "torch.ops.aten.matmul.default",
    "torch.ops.aten.pow.Tensor_Scalar", "torch.ops.higher_order.cond", "_operator.pow", "_operator.getitem",
    "Symbol('s0')", "Pow(Symbol('s0'), Integer(9999))", "(" * 99 + ")" * 99, "a" * 5000, [], {}, [[]], [1, 2],
    {"as_int": 1 << 40}, {"as_none": True}, {"as_tensor": {"name": "x"}}, {"as_string": "victim"}, {"as_name": "x"},
)  # fmt: skip


def unpacked(data: bytes) -> dict[str, Any]:
    """The files of an archive by name; JSON as values."""
    with zipfile.ZipFile(io.BytesIO(data)) as source:
        parts = {name: source.read(name) for name in source.namelist()}
    return {name: json.loads(part) if name.endswith(".json") else part for name, part in parts.items()}


def packed(parts: dict[str, Any]) -> bytes:
    """A valid archive of files by name."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as target:
        for name, part in parts.items():
            target.writestr(name, part if isinstance(part, bytes) else json.dumps(part))
    return buffer.getvalue()


def places(value: Any) -> list[tuple[Any, Any]]:
    """All (container, key) of a value of JSON."""
    found, waiting = [], [value]
    while waiting:
        one = waiting.pop()
        keys: Any = list(one) if isinstance(one, dict) else range(len(one)) if isinstance(one, list) else ()
        for key in keys:
            found.append((one, key))
            waiting.append(one[key])
    return found


def change(value: Any, draw: random.Random) -> None:
    """Change one place of a value of JSON: another value, another place's, gone, twice, in another order."""
    everywhere = places(value)
    if not everywhere:
        return
    where, key = draw.choice(everywhere)
    # Half of the changes keep the kind of value: those get deepest.
    alike = [a[b] for a, b in everywhere if type(a[b]) is type(where[key])]
    match draw.randrange(8):
        case 0 | 1:
            where[key] = copy.deepcopy(draw.choice(HOSTILE))
        case 2 | 3:
            where[key] = copy.deepcopy(draw.choice(alike))
        case 4 if isinstance(where[key], int):
            where[key] = draw.choice([number for number in HOSTILE if isinstance(number, int)])
        case 5:
            del where[key]
        case 6 if isinstance(where, list):
            where.insert(draw.randrange(len(where) + 1), copy.deepcopy(where[key]))
        case 7 if isinstance(where, list):
            draw.shuffle(where)
        case _ if isinstance(where, dict):
            where[str(draw.choice(HOSTILE))[:40]] = where.pop(key)


def changed_pt2(data: bytes, draw: random.Random) -> bytes:
    """The archive with one to four changes, mostly in its graph."""
    parts = unpacked(data)
    tables = [name for name in parts if name.endswith(".json")]
    model = next(name for name in tables if name.endswith("model.json"))
    for _ in range(draw.choice((1, 1, 2, 4))):
        match draw.randrange(12):
            case 0:
                parts[draw.choice(list(parts))] = draw.randbytes(draw.choice((0, 1, 7, 64)))
                return packed(parts)
            case 1:
                del parts[draw.choice(list(parts))]
                return packed(parts)
            case 2 | 3:
                change(parts[draw.choice(tables)], draw)
            case 4:
                change(parts[model], draw)
            case _:
                graph = parts[model]["graph_module"].get("graph")
                change(graph.get("nodes", graph) if isinstance(graph, dict) else parts[model], draw)
    return packed(parts)


def changed_onnx(data: bytes, draw: random.Random) -> bytes:
    """The model with one to four fields changed, taken away or repeated."""
    model = onnx.ModelProto()
    model.ParseFromString(data)
    for _ in range(draw.choice((1, 1, 2, 4))):
        messages = [model]
        for message in messages:
            for field, value in message.ListFields():
                if field.message_type is not None:
                    messages += list(value) if _many(value) else [value]
        message = draw.choice(messages)
        fields = message.ListFields() or [(field, None) for field in message.DESCRIPTOR.fields]
        field, value = draw.choice(fields if draw.random() < 0.8 else [(f, None) for f in message.DESCRIPTOR.fields])
        _change_field(message, field, value, draw)
    return bytes(model.SerializeToString())


def _many(value: Any) -> bool:
    return hasattr(value, "__len__") and not isinstance(value, str | bytes)


def _change_field(message: Any, field: Any, value: Any, draw: random.Random) -> None:
    try:
        if draw.random() < 0.2:
            message.ClearField(field.name)
        elif field.message_type is not None:
            if _many(value) and len(value):
                value.append(copy.deepcopy(draw.choice(list(value))))
        elif _many(value):
            value[draw.randrange(len(value))] = draw.choice(HOSTILE)
        else:
            other = draw.choice(HOSTILE)
            setattr(message, field.name, other.encode() if field.type == field.TYPE_BYTES else other)
    except (TypeError, ValueError, AttributeError, IndexError, KeyError):
        pass  # not a value of this field


def changed_recipe(data: bytes, draw: random.Random) -> bytes:
    """The recipe with one to four changes, of its values or of its text."""
    if draw.random() < 0.3:
        text = bytearray(data)
        for _ in range(draw.choice((1, 2, 4))):
            at = draw.randrange(len(text))
            text[at : at + draw.choice((0, 1, 5))] = draw.choice(
                (b"*a", b"&a ", b"[", b"{", b"!!", b"\xff", b"\n", b": ")
            )
        return bytes(text)
    raw = _parsed(data)
    for _ in range(draw.choice((1, 1, 2, 4))):
        change(raw, draw)
    return bytes(yaml.dump(raw, Dumper=yaml.CSafeDumper, encoding="utf-8"))


def _parsed(data: bytes) -> Any:
    return yaml.load(data, Loader=yaml.CSafeLoader)
