"""A goal of bytes: the network is trained into a compact file of the size asked for."""

import math

from gossamer.constraints.apply import materialize
from gossamer.jobs import exporting
from gossamer.jobs.attempts import Attempts
from gossamer.methods.quantize.rate import RateConstrainedQuantization, least_bytes
from gossamer.modules.cost import dense_bytes
from gossamer.search.axes import Steps

NO_WEIGHTS = 2.0  # times the bytes of a file without weights: smaller ones are not tried


def larger(tries: int, over: float) -> float:
    """How many times larger the next file may be, when this one lost so many points more than allowed."""
    return min(4.0, 1.25 + tries / 4 + over / 2)


def to_size(
    attempts: Attempts, steps: Steps, whole: exporting.ExportedArtifacts, *, epochs: int, lr: float | None
) -> tuple[Steps, exporting.ExportedArtifacts]:
    """Train into a file of the size asked for, or into larger and larger ones until the budget is kept. whole: what the
    steps have made."""
    context, goal, dense = attempts.context, attempts.goal, dense_bytes(attempts.original)
    size = asked = goal.file_limit(dense)
    if whole.compact_bytes <= asked:
        return steps, whole
    least = least_bytes(whole.model, attempts.task)
    if asked < NO_WEIGHTS * least:
        context.progress.say(f"without its weights the file would have {least:,} bytes already")
        size = NO_WEIGHTS * least
    before = list(context.log.edits)
    tries = 0
    while size < min(dense, whole.compact_bytes):
        small = RateConstrainedQuantization(compression_ratio=dense / size, epochs=epochs, lr=lr)
        context.log.edits[:] = before
        name = f"size {size:,.0f} bytes"
        result = attempts.trials(name, name, _sized, attempts, whole, small, name)
        if result is not None and result.drop.within(goal.max_drop):
            return (*steps, small), result
        size *= larger(tries, result.drop.points - goal.max_drop if result else math.inf)
        tries += 1
    context.log.edits[:] = [*before, *attempts.trials.rows()]
    context.progress.say("no smaller file is within the budget")
    return steps, attempts.deploy(whole.model, "without a smaller file", int8=whole.int8_path is not None)


def _sized(
    attempts: Attempts, whole: exporting.ExportedArtifacts, small: RateConstrainedQuantization, name: str
) -> exporting.ExportedArtifacts:
    """The network trained into a file, noted as a state."""
    model = materialize(attempts.step(whole.model, small, name, attempts.context)).eval()
    result = attempts.deploy(model, name, int8=whole.int8_path is not None)
    attempts.note_size(name, result.model, result.scores, result.drop, result.compact_bytes)
    return result
