"""A goal of bytes: the network is trained into a compact file of the size asked for."""

import math

from gossamer.constraints.apply import materialize
from gossamer.core.context import Context
from gossamer.jobs import exporting
from gossamer.jobs.attempts import Attempts, Delivery
from gossamer.methods.quantize.rate import RateConstrainedQuantization, least_bytes
from gossamer.modules.cost import dense_bytes

NO_WEIGHTS = 2.0  # times the bytes of a file without weights: smaller ones are not tried


def larger(tries: int, over: float) -> float:
    """How many times larger the next file may be, when this one lost so many points more than allowed."""
    return min(4.0, 1.25 + tries / 4 + over / 2)


def to_size(attempts: Attempts, shaped: Delivery, *, epochs: int, lr: float | None) -> Delivery:
    """Train into a file of the size asked for, or into larger and larger ones until the budget is kept.

    Args:
        attempts: what the parts of the job share.
        shaped: the network so far.
        epochs: of one training.
        lr: of one training; None: the method's own.

    Returns:
        The network of the smallest file within the budget; `shaped` with what was left out where there is none.
    """
    context, goal, whole = attempts.context, attempts.goal, shaped.result
    dense = dense_bytes(attempts.original)
    size = asked = goal.file_limit(dense)
    if whole.compact_bytes <= asked:
        return shaped
    least = least_bytes(whole.model, attempts.task)
    if asked < NO_WEIGHTS * least:
        context.progress.say(f"without its weights the file would have {least:,} bytes already")
        size = NO_WEIGHTS * least
    tries = 0
    while size < min(dense, whole.compact_bytes):
        small = RateConstrainedQuantization(compression_ratio=dense / size, epochs=epochs, lr=lr)
        name = f"size {size:,.0f} bytes"
        own = context.fork()
        result = attempts.trials(name, name, _sized, attempts, whole, small, name, own)
        context.log.curves.extend(own.log.curves)
        if result is not None and result.drop.within(goal.max_drop):
            return Delivery(steps=(*shaped.steps, small), result=result, edits=[*shaped.edits, *own.log.edits])
        size *= larger(tries, result.drop.points - goal.max_drop if result else math.inf)
        tries += 1
    context.progress.say("no smaller file is within the budget")
    again = attempts.deploy(whole.model, "without a smaller file", int8=whole.int8_path is not None)
    return Delivery(steps=shaped.steps, result=again, edits=[*shaped.edits, *attempts.trials.rows()])


def _sized(
    attempts: Attempts,
    whole: exporting.ExportedArtifacts,
    small: RateConstrainedQuantization,
    name: str,
    own: Context,
) -> exporting.ExportedArtifacts:
    """The network trained into a file, noted as a state."""
    model = materialize(attempts.step(whole.model, small, name, own)).eval()
    result = attempts.deploy(model, name, int8=whole.int8_path is not None)
    attempts.note_size(name, result.model, result.scores, result.drop, result.compact_bytes)
    return result
