"""Options that commands share in groups: a group is a dataclass, and `grouped` shows its fields to typer."""

import functools
import inspect
from collections.abc import Callable
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gossamer.cli.console import Console
from gossamer.cli.options import (
    AugmentOption,
    BatchOption,
    BatchSizeOption,
    JsonOption,
    LatencyOption,
    MacsOption,
    ParamsOption,
    ThreadsOption,
    parse_bytes,
)

if TYPE_CHECKING:
    from gossamer.cli.loading_data import Consumer


@dataclass(frozen=True, kw_only=True)
class LoadingOptions:
    """What a command has to know of a network and of a folder of images to load them."""

    weights: Annotated[
        Path | None,
        typer.Option(
            "--weights",
            metavar="FILE",
            help="Trained weights: .safetensors, .pt with tensors only, or `pretrained`: the library's own.",
        ),
    ] = None
    preprocessing: Annotated[
        str | None,
        typer.Option(
            "--preprocessing",
            metavar="FIELDS",
            help="How images of a folder become inputs: a JSON file, or fields such as size=48x320,numbers=0-255. "
            "Numbers are imagenet, 0-1, 0-255 or -1-1.",
            show_default="the network's, where known",
        ),
    ] = None
    skip_faulty: Annotated[
        bool,
        typer.Option(
            "--skip-faulty",
            help="Leave faulty boxes of a folder out, and say how many there were, instead of refusing it.",
        ),
    ] = False

    def consumer(self, model: str | None) -> "Consumer":
        """What `load_data` has to know of the network that the data are for."""
        from gossamer.cli.loading_data import Consumer

        return Consumer(model=model, **asdict(self))


@dataclass(frozen=True, kw_only=True)
class BatchOptions:
    """How training data come; names as in `load_data`."""

    augment: AugmentOption = None
    batch_size: BatchSizeOption = None
    workers: Annotated[
        int | None,
        typer.Option("--workers", min=0, metavar="N", help="Threads that prepare batches ahead.", show_default="0"),
    ] = None


@dataclass(frozen=True, kw_only=True)
class LimitOptions:
    """What may be lost and what must be gained; names as in `Goal`."""

    max_drop: Annotated[
        float | None,
        typer.Option(
            help="Points of accuracy that may be lost.", show_default="0.5; with a recipe or a named student: none"
        ),
    ] = None
    speedup: Annotated[float | None, typer.Option(help="How many times faster, at least.")] = None
    latency_ms: LatencyOption = None
    macs: MacsOption = None
    params: ParamsOption = None
    file_bytes: Annotated[
        int | None,
        typer.Option(
            "--file-bytes", parser=parse_bytes, metavar="SIZE", help="Size of the compact file, at most (30kB, 1MiB)."
        ),
    ] = None


@dataclass(frozen=True, kw_only=True)
class TimingOptions:
    """Where and how latency is measured; names as in `Goal`."""

    runtime: Annotated[
        str, typer.Option(help="Where latency counts: torch, torch.compile, onnxruntime, openvino or binary.")
    ] = "onnxruntime"
    threads: ThreadsOption = None
    batch: BatchOption = None


@dataclass(frozen=True, kw_only=True)
class OutputOptions:
    """What is printed."""

    json: JsonOption = False
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress, only the result.")] = False

    def console(self) -> Console:
        return Console(as_json=self.json, quiet=self.quiet)


def grouped(command: Callable[..., None]) -> Callable[..., None]:
    """The command as typer has to see it: in the place of each parameter that is a dataclass, the fields of it."""
    shown: list[inspect.Parameter] = []
    groups: dict[str, tuple[type, list[str]]] = {}
    for parameter in inspect.signature(command).parameters.values():
        if not is_dataclass(parameter.annotation):
            shown.append(parameter)
            continue
        kind: Any = parameter.annotation
        options = inspect.signature(kind).parameters
        groups[parameter.name] = kind, list(options)
        shown += options.values()

    @functools.wraps(command)
    def run(**values: Any) -> None:
        made = {name: kind(**{key: values.pop(key) for key in keys}) for name, (kind, keys) in groups.items()}
        command(**values, **made)

    by_name = [one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in shown]  # so that defaults stand in any order
    run.__signature__ = inspect.Signature(by_name)  # type: ignore[attr-defined]
    run.__annotations__ = {one.name: one.annotation for one in shown}
    return run
