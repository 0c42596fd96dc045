"""`gossamer analyze` and `gossamer inspect`: looking at a network, and at a file."""

from pathlib import Path
from typing import Annotated

import typer

from gossamer.cli.console import Console
from gossamer.cli.values import JsonOption
from gossamer.errors import BadInput, CorruptFile


def register(app: typer.Typer) -> None:
    app.command(epilog="Example: [bold]gossamer inspect out/resnet20-fashion-mnist/model.onnx[/bold]")(inspect)


def inspect(
    file: Annotated[Path, typer.Argument(metavar="FILE", help=".onnx, .pt2, .safetensors, .pt, or a result folder.")],
    json: JsonOption = False,
) -> None:
    """What a file holds: tensors, their types, and how much of the file they take."""
    console = Console(as_json=json)
    if file.is_dir():
        _inspect_folder(console, file)
        return
    from gossamer.contents import read_contents

    contents = read_contents(file)
    rows = [
        (t.name, t.dtype, "x".join(map(str, t.shape)) or "scalar", f"{t.bytes:,}", _share(t.bytes, contents.file_bytes))
        for t in contents.tensors
    ]
    rows.append(
        ("(graph and metadata)", "", "", f"{contents.other_bytes:,}", _share(contents.other_bytes, contents.file_bytes))
    )
    rows.append(("file", "", "", f"{contents.file_bytes:,}", "100.0 %"))
    console.table(str(file), ("tensor", "dtype", "shape", "bytes", "share"), rows)
    console.document(contents)


def _inspect_folder(console: Console, folder: Path) -> None:
    """The result of a job: its files, and what they are worth."""
    from gossamer.record import JobDocument
    from gossamer.report.verdict import sentence

    source = folder / "records.json"
    if not source.is_file():
        raise BadInput(
            f"{folder} holds no records.json; it is not a result of gossamer compress, or the job has not ended"
        )
    try:
        document = JobDocument.parse(source.read_text())
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptFile(f"{source} is damaged: {error}") from error
    sizes = {path.name: path.stat().st_size for path in sorted(folder.iterdir()) if path.is_file()}
    total = sum(sizes.values())
    rows = [(name, f"{size:,}", _share(size, total)) for name, size in sizes.items()]
    console.table(str(folder), ("file", "bytes", "share"), [*rows, ("all", f"{total:,}", "100.0 %")])
    console.line(sentence(document))
    console.document({"folder": folder, "files": sizes, "met": document.met, "missed": document.missed})


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if whole else ""
