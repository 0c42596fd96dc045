"""Names of tensors in few bytes: by module, with the part that a module's name shares with the one before left out."""

from gossamer.gsr.format.ledger import MOST_DEEP, Limit
from gossamer.gsr.format.stream import Reader, Writer

# What modules usually hold, in the order of their state_dict. The number in the list stands for the names.
LEAVES: tuple[tuple[str, ...], ...] = (
    (),
    ("weight",),
    ("weight", "bias"),
    ("weight", "bias", "running_mean", "running_var"),
    ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"),
    ("running_mean", "running_var"),
    ("running_mean", "running_var", "num_batches_tracked"),
    ("bias",),
)
BUFFERS = ("running_mean", "running_var", "num_batches_tracked")
MOST_NAMES, MOST_TEXT = 1 << 18, 1 << 10


def write_names(names: list[str], buffers: set[str], writer: Writer) -> None:
    """Append the names, and which of them are buffers; reading gives them in the same order."""
    groups = _grouped(names, buffers)
    writer.varint(len(groups))
    before: list[str] = []
    for path, known, leaf in groups:
        shared = 0
        while shared < min(len(before), len(path)) and before[shared] == path[shared]:
            shared += 1
        rest = len(path) - shared
        # one byte: 3 bits what the module holds (0: one tensor by its own name), 3 bits shared parts, 2 bits new parts
        writer.byte(known | min(shared, 7) << 3 | min(rest, 3) << 6)
        if shared >= 7:
            writer.varint(shared - 7)
        if rest >= 3:
            writer.varint(rest - 3)
        for part in path[shared:]:
            writer.text(part)
        if known == 0:
            writer.text(leaf)
            writer.byte(".".join([*path, leaf]) in buffers)
        before = path


def _grouped(names: list[str], buffers: set[str]) -> list[tuple[list[str], int, str]]:
    """(module, number in LEAVES, name of the first tensor): runs of tensors of one module; 0 for one tensor alone."""
    groups: list[tuple[list[str], int, str]] = []
    at = 0
    while at < len(names):
        *path, leaf = names[at].split(".")
        prefix = "".join(f"{part}." for part in path)
        known = 0
        for number, leaves in enumerate(LEAVES):
            wanted = [prefix + one for one in leaves]
            usual = all((name in buffers) == (one in BUFFERS) for name, one in zip(wanted, leaves))
            if len(leaves) > len(LEAVES[known]) and names[at : at + len(leaves)] == wanted and usual:
                known = number
        groups.append((path, known, leaf))
        at += max(1, len(LEAVES[known]))
    return groups


def read_names(reader: Reader) -> tuple[list[str], set[str]]:
    """The names and which of them are buffers."""
    names: list[str] = []
    buffers: set[str] = set()
    path: list[str] = []
    for _ in range(reader.varint(MOST_NAMES)):
        code = reader.byte()
        known, shared, rest = code & 7, code >> 3 & 7, code >> 6
        shared += reader.varint(MOST_TEXT) if shared == 7 else 0
        rest += reader.varint(MOST_TEXT) if rest == 3 else 0
        if shared > len(path):
            reader.fail("a name shares more with the one before than that has")
        if shared + rest > MOST_DEEP:
            reader.fail(f"modules are nested more than {MOST_DEEP} deep")
        path = path[:shared] + [_part(reader) for _ in range(rest)]
        leaves = LEAVES[known] or (_part(reader),)
        # A module's whole path is spelled out in each of its names, however few bytes tell it.
        length = sum(map(len, path)) + len(path)
        reader.ledger.charge(Limit.COUNT, len(leaves))
        reader.ledger.charge(Limit.NAMES, sum(length + len(leaf) for leaf in leaves))
        prefix = "".join(f"{part}." for part in path)
        for leaf in leaves:
            names.append(prefix + leaf)
            if reader.byte() == 1 if known == 0 else leaf in BUFFERS:
                buffers.add(prefix + leaf)
    if len(set(names)) != len(names):
        reader.fail("two tensors have one name")
    return names, buffers


def _part(reader: Reader) -> str:
    part = reader.text(MOST_TEXT)
    if "." in part:
        reader.fail(f"{part!r} is no part of a name")
    return part
