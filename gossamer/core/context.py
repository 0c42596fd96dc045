"""The context of a method: what it may read besides model and task, and where its log goes."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gossamer.core.goal import Goal
from gossamer.core.kinds import check_kinds
from gossamer.core.progress import Logged, Progress, Quiet, Silent
from gossamer.core.record import Curve, Edit, Trial
from gossamer.core.validation import KnownArguments, refuse_unknown

if TYPE_CHECKING:  # the command line starts without torch
    from torch import nn


@dataclass
class Log:
    """What came of some work. Jobs write into theirs; a method that is called gives its own back.

    Attributes:
        edits: what was changed in the network, in order.
        trials: the networks that were tried, with their measured costs.
        curves: how each training went.
    """

    edits: list[Edit] = field(default_factory=list)
    trials: list[Trial] = field(default_factory=list)
    curves: list[Curve] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Context(KnownArguments):
    """What a method may read besides the model and the task. The defaults are right for a call by hand.

    Args:
        seed: of every random decision.
        accelerator: Lightning Fabric's: "auto", "cpu", "cuda".
        devices: processes; 2 on "cpu" means two processes over gloo.
        folder: where checkpoints of trainings go; None: nowhere.
        progress: where is said what is being done. Library calls take `Logged` where none is chosen: messages to the
            logger "gossamer", and a bar on a terminal.
        original: the uncompressed network of a job; networks learn from it.
        teacher: a network to learn from that is better than the original; where there is none, the original is.
        compile_teacher: whether torch.compile runs it, where only its outputs count.
        cache: a folder that keeps outputs of teachers, for later epochs and jobs.
        note: what files of weights say of the network that they are for.
        goal: what a job is to reach, and the runtime, threads and batch that time is measured with.
        log: what came of the work so far.

    Example:
        >>> context = Context(seed=3)
        >>> context.fork(devices=2).seed, context.devices
        (3, 1)
    """

    seed: int = 0
    accelerator: str = "auto"
    devices: int = 1
    folder: Path | None = None
    progress: Progress = field(default_factory=Silent)
    original: "nn.Module | None" = None
    teacher: "nn.Module | None" = None
    compile_teacher: bool = False
    cache: Path | None = None
    note: Mapping[str, str] = field(default_factory=dict)
    goal: Goal | None = None
    log: Log = field(default_factory=Log, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_kinds(self, "Context")

    @property
    def teacher_or_original(self) -> "nn.Module | None":
        """The network that compressed ones learn from, if there is one."""
        return self.teacher if self.teacher is not None else self.original

    def fork(self, **changes: Any) -> "Context":
        """The same with an empty log, and with these fields changed. Raises BadInput for an unknown field."""
        refuse_unknown(changes, [f.name for f in fields(self) if f.name != "log"], "Context")
        return replace(self, log=Log(), **changes)

    def with_progress(self, verbose: bool = True) -> "Context":
        """The same for a library call: it says what it does (`Logged`) unless another progress was chosen; with
        verbose False it is quiet."""
        if not verbose:
            return replace(self, progress=Quiet())
        return replace(self, progress=Logged()) if type(self.progress) is Silent else self
