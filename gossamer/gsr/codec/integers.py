"""What the coders take and give: integer matrices, and the facts a decoder must know beforehand."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gossamer.errors import BadInput, CorruptFile

LARGEST = 1 << 15
MOST_WEIGHTS = 1 << 31

IntMatrix = NDArray[np.int32]


@dataclass(frozen=True, kw_only=True)
class IntegersHeader:
    """What a decoder is told of one tensor.

    Args:
        rows: number of output channels.
        columns: number of weights of each.
        lag: distance in columns to a weight that is likely of similar size (image or kernel width), 0 for none.
        largest: max |q|.
        trellis: whether the integers are levels that follow the state machine of `trellis.py`.

    Example:
        >>> IntegersHeader(rows=3, columns=4).weights
        12
    """

    rows: int
    columns: int
    lag: int = 0
    largest: int = LARGEST
    trellis: bool = False

    @property
    def weights(self) -> int:
        return self.rows * self.columns


@dataclass(frozen=True, kw_only=True, eq=False)
class Integers:
    """One tensor to code.

    Args:
        q: int32, shape (rows, columns): rows are output channels, columns are input channels x kernel.
        lag: distance in columns to a weight that is likely of similar size (image or kernel width), 0 for none.
        trellis: whether the integers are levels that follow the state machine of `trellis.py`.

    Example:
        >>> Integers(q=np.array([[3, 0, -1]], np.int32)).header().largest
        3
    """

    q: IntMatrix
    lag: int = 0
    trellis: bool = False

    def header(self) -> IntegersHeader:
        """What the decoder must be told. BadInput if the tensor is no coder's business."""
        if self.q.ndim != 2 or self.q.dtype != np.int32:
            raise BadInput(
                f"integers to code: int32 of shape (rows, columns) expected, got {self.q.dtype} {self.q.shape}"
            )
        largest = max(-int(self.q.min()), int(self.q.max())) if self.q.size else 0
        rows, columns = self.q.shape
        found = IntegersHeader(rows=rows, columns=columns, lag=self.lag, largest=largest, trellis=self.trellis)
        fault = header_fault(found)
        if fault:
            raise BadInput(f"integers to code: {fault}")
        return found


def header_fault(header: IntegersHeader) -> str:
    """Why a coder refuses a tensor, or an empty string."""
    if header.rows < 0 or header.columns < 0 or header.weights > MOST_WEIGHTS:
        return f"{header.rows} x {header.columns} weights; at most {MOST_WEIGHTS} can be coded"
    if not 0 <= header.largest <= LARGEST:
        return f"the largest magnitude is {header.largest}; at most {LARGEST} can be coded, store the tensor raw"
    # The kernel pads rows by the lag: a larger one would only take memory.
    if not 0 <= header.lag <= header.columns:
        return f"a lag of {header.lag} columns in rows of {header.columns}"
    return ""


def check_headers(headers: Sequence[IntegersHeader]) -> None:
    """CorruptFile if the headers of a section cannot be true; nothing has been allocated yet."""
    for number, header in enumerate(headers):
        fault = header_fault(header)
        if fault:
            raise CorruptFile(f"tensor {number} of a section: {fault}")
    total = sum(header.weights for header in headers)
    if total > MOST_WEIGHTS:
        raise CorruptFile(f"a section of {total} weights; at most {MOST_WEIGHTS} can be coded")
