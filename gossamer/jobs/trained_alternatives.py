"""Trainings in the place of a cut and its recovery: channels that are emptied, and binary layers."""

from gossamer.core.goal import Goal
from gossamer.core.task import Task
from gossamer.methods import catalogue
from gossamer.methods.distill.recover import RecoveryDistillation
from gossamer.search.axes import Steps

EMPTYING, BINARY = "prune.growing", "binarize.react"
REACH = 3.0  # times the budget of a drop: what has lost more is not brought within it by another way to the same size


def within_reach(drop: float, budget: float, won: set[str], goal: Goal) -> bool:
    """Whether sparse training is worth an attempt after a cut that lost too much.

    Args:
        drop: what the cut and its recovery lost, in points.
        budget: what may be lost.
        won: the kind of the shape.
        goal: of the job. Where it is one of time, only narrower networks can be reached by emptying channels.

    Example:
        >>> within_reach(0.8, 0.5, {"depth"}, Goal(macs=1000)), within_reach(0.8, 0.5, {"depth"}, Goal(speedup=2))
        (True, False)
    """
    return budget < drop <= REACH * budget and (not goal.time_gains or any("width" in kind for kind in won))


def sparse_steps(recovery: RecoveryDistillation, macs: int, goal: Goal, task: Task) -> Steps:
    """The training that empties channels until the network costs as much as a cut one, in as many epochs as that has
    had; none where these are less than one.

    Args:
        recovery: of the cut network.
        macs: its multiply-adds.
        goal: parameters are the target where it asks for nothing else.
        task: data.

    Example:
        >>> from gossamer.data import tiny_task
        >>> [step] = sparse_steps(RecoveryDistillation(epochs=3), 5000, Goal(speedup=2), tiny_task())
        >>> step.name(), step.macs, step.epochs
        ('prune.growing', 5000, 3)
    """
    per_epoch = len(task.train)
    steps = recovery.steps or recovery.passes(task) * per_epoch
    if steps < per_epoch:
        return ()
    params = int(goal.params) if goal.params is not None and list(goal.shape_gains) == ["params"] else None
    target = {"macs": macs} if params is None else {"params": params}
    given = {key: getattr(recovery, key) for key in ("lr", "weight_decay", "clip", "temperature", "alpha")}
    return (catalogue()[EMPTYING](**target, epochs=steps // per_epoch, **given),)


def binary_steps(recovery: RecoveryDistillation, task: Task) -> Steps:
    """The training of binary layers in about as many epochs as a recovery: half of them for each of its two stages.

    Args:
        recovery: of a cut network.
        task: data.

    Example:
        >>> from gossamer.data import tiny_task
        >>> [step] = binary_steps(RecoveryDistillation(epochs=6), tiny_task())
        >>> step.name(), step.epochs
        ('binarize.react', 3)
    """
    epochs = (recovery.steps or recovery.passes(task) * len(task.train)) // len(task.train)
    return (catalogue()[BINARY](epochs=epochs // 2),) if epochs > 1 else ()


def trained_otherwise(steps: Steps) -> bool:
    """Whether these steps end with such a training, so that their shape is not known without it.

    Example:
        >>> trained_otherwise((catalogue()["prune.growing"](macs=10),)), trained_otherwise(())
        (True, False)
    """
    return bool(steps) and steps[-1].name() in (EMPTYING, BINARY)
