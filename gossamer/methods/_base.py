"""What a method is: a frozen value of hyper-parameters that can be called on a model."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal

from torch import nn

from gossamer.core.conditions import own_conditions
from gossamer.core.context import Context
from gossamer.core.copies import check_network
from gossamer.core.kinds import unwrapped
from gossamer.core.record import Curve, Edit, EditKind
from gossamer.core.task import PartialTask, Task, task_of
from gossamer.core.validation import KnownArguments, check_fields
from gossamer.errors import BadInput

Needs = Literal["weights", "inputs", "samples", "labels"]
Settings = Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class MethodResult:
    """What a method gives: `model, edits = method(model)`.

    Attributes:
        model: the changed copy; the model that was given is as it was.
        edits: what was changed, and what was left alone and why.
        curves: how its trainings went.
    """

    model: nn.Module
    edits: tuple[Edit, ...]
    curves: tuple[Curve, ...] = ()

    def __iter__(self) -> Iterator[Any]:
        return iter((self.model, self.edits))

    def __repr__(self) -> str:
        return f"MethodResult({type(self.model).__name__}, {len(self.edits)} edits)"


@dataclass(frozen=True)
class NetworkCandidate:
    """A way to rewrite a whole network that the planner may consider.

    Attributes:
        axis: what it is one of, the candidates of an axis going from gentle to strong.
        what: it does, in words.
        step: the method that does it.
    """

    axis: str
    what: str
    step: "Method"


@dataclass(frozen=True, kw_only=True)
class Method(KnownArguments, ABC):
    """A value of hyper-parameters, callable on a model; the result has a changed copy of it and a list of edits.

    The file's path below `methods/` is its name in a recipe: `prune.channels`. A class that leaves something abstract
    is no method but what several share.

    Attributes:
        stage: orders the methods of a recipe: one with a lower stage cannot come after one with a higher; one with
            none may stand anywhere.
        saves: what goes down: "params", "macs", "nonzeros", "distinct" (values).
        needs: what the method needs besides the model. "weights": nothing. "inputs": example inputs, to run the
            network. "samples": a task whose data may be without labels. "labels": a task with labelled training data.
        example: settings with which the method works on a small network within seconds. The contract tests use them.

    Example:
        >>> import torch, gossamer
        >>> model = torch.nn.Linear(8, 4)
        >>> pruned, edits = gossamer.methods.prune.Magnitude(sparsity=0.75)(model)
        >>> int((pruned.weight == 0).sum())
        24
    """

    stage: ClassVar[int | None] = None
    saves: ClassVar[tuple[str, ...]] = ()
    needs: ClassVar[Needs] = "weights"
    example: ClassVar[Settings]

    def __post_init__(self) -> None:
        check_fields(self, self.name())

    @classmethod
    def name(cls) -> str:
        """The name in a recipe."""
        return cls.__module__.removeprefix("gossamer.methods.")

    @own_conditions()
    def __call__(
        self, model: nn.Module, task: Task | Any | None = None, context: Context | None = None, **settings: Any
    ) -> MethodResult:
        """Apply the method to a copy of the model.

        Args:
            model: any module; it is left as it was.
            task: data and metric. Example inputs (a tensor or a tuple of them) are enough for a method that only runs
                the network, and nothing at all for one that only looks at weights.
            context: seed, device, teacher, progress and the like; None: the defaults.
            settings: single fields of the context, for calls by hand: `seed=1`, `teacher=network`.

        Returns:
            The changed copy and the edits; it unpacks into the two.

        Raises:
            BadInput: the method needs more of the task than was given, or does not fit the model.
            NoEffect: nothing matched.
        """
        model = unwrapped(model)
        check_network(model)
        own, data = (context or Context()).fork(**settings), task_of(task, self.name())
        if self.needed() == "labels" and isinstance(data, PartialTask):
            raise BadInput(f"{self.name()} needs training data with labels: give a task, method(model, task)")
        changed = self.apply(model, data, own)
        return MethodResult(changed, tuple(own.log.edits), tuple(own.log.curves))

    @abstractmethod
    def apply(self, model: nn.Module, task: Task, context: Context) -> nn.Module:
        """A changed copy of the model; every change goes to the context's log with `note`."""

    def needed(self) -> Needs:
        """Return what the method needs with these settings: `needs`, unless one of them asks for more or less."""
        return self.needs

    @classmethod
    def layer_candidates(cls, layer: nn.Module, name: str) -> Iterator["Method"]:
        """What the planner may try in the place of one layer.

        Args:
            layer: a linear layer or an ungrouped convolution.
            name: of the layer in its network, for the steps.

        Returns:
            Steps that may make this layer cheaper, the gentlest first; none where the method is not for single layers.
            The planner times what they make next to the layer.
        """
        return iter(())

    @classmethod
    def network_candidates(cls) -> Sequence[NetworkCandidate]:
        """Return ways to rewrite a whole network that the planner may try, the gentlest first; none by default."""
        return ()

    def shape_only(self) -> "Method":
        """A method that gives the same shapes with as little fitting as it can: for measuring what they cost."""
        return self

    def note(self, context: Context, kind: EditKind, target: str, *, before: str, after: str, **more: Any) -> None:
        """An edit for the log. more: proof, note and swapped of an `Edit`."""
        context.log.edits.append(Edit(method=self.name(), kind=kind, target=target, before=before, after=after, **more))

    def options(self) -> dict[str, Any]:
        """Hyper-parameters by name."""
        return {f.name: getattr(self, f.name) for f in fields(self)}
