"""How many channels of a group can stay: counts per equivalence class that satisfy all equal-count constraints."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, milp

MILP_SECONDS = 5.0


@dataclass
class EquivalenceClasses:
    """The coupled channels of one group, sorted into classes that every constraint treats alike.

    Within a class only the number of channels matters, so a group has one unknown count for each class.

    Args:
        members: numbers of the coupled channels in each class.
        equal_counts: pairs of a matrix (rows, classes) and a constant (rows,). `matrix @ counts + constant` must be the
            same number in every row.
    """

    members: list[NDArray[np.int64]]
    equal_counts: list[tuple[NDArray[np.int64], NDArray[np.int64]]]

    @property
    def sizes(self) -> NDArray[np.int64]:
        """Number of channels in each class."""
        return np.array([len(m) for m in self.members], dtype=np.int64)

    @property
    def divisor(self) -> int:
        """The group can keep any multiple of 1 / divisor of itself."""
        return math.gcd(*self.sizes.tolist()) if self.equal_counts else int(self.sizes.sum())

    def satisfied_by(self, counts: NDArray[np.int64]) -> bool:
        """Whether every constraint holds for these counts."""
        return all(len(set((matrix @ counts + constant).tolist())) == 1 for matrix, constant in self.equal_counts)

    def counts(self, fraction: float, required: NDArray[np.bool_]) -> NDArray[np.int64]:
        """Counts to keep in each class, as near to the fraction as the constraints allow, and at least 1.

        Args:
            fraction: of the channels to keep, in (0, 1].
            required: which coupled channels of the whole network must stay, bool.

        Returns:
            Counts, shape (classes,).
        """
        least = np.array([max(1, int(required[m].sum())) for m in self.members], dtype=np.int64)
        wanted = np.maximum(self.sizes * fraction, least)
        # Three attempts, the cheap ones first. Most groups have no constraint, and rounding is exact for them.
        near: NDArray[np.int64] = np.floor(wanted + 0.5).astype(np.int64)
        if self.satisfied_by(near):
            return near
        # The same fraction of every class satisfies constraints without a constant part.
        # size x j / divisor is a whole number in every class, because the divisor divides all sizes.
        divisor = self.divisor
        if divisor > 1:
            j = min(max(int(fraction * divisor + 0.5), 1), divisor)
            exact: NDArray[np.int64] = self.sizes * j // divisor
            if self.satisfied_by(exact) and bool((exact >= least).all()):
                return exact
        return self._nearest(wanted, least)

    def _nearest(self, wanted: NDArray[Any], least: NDArray[np.int64]) -> NDArray[np.int64]:
        """The feasible counts with the smallest sum of |count - wanted|, by an integer program; all, if none is found.

        The unknowns are the counts x and bounds e on their distances: minimize sum(e) with x - e <= wanted <= x + e.
        """
        n = len(self.members)
        # Equality of all rows, as the difference of every row to the first one.
        differences, constants = [], []
        for matrix, constant in self.equal_counts:
            differences.append(matrix[1:] - matrix[:1])
            constants.append(constant[0] - constant[1:])
        # All rows equal the first one: as many equations as there are rows, less one for each constraint.
        equal, right = np.concatenate(differences), np.concatenate(constants)
        eye = np.eye(n)
        constraints = [
            LinearConstraint(np.hstack([equal, np.zeros_like(equal)]), right, right),
            LinearConstraint(np.hstack([eye, -eye]), -np.inf, wanted),
            LinearConstraint(np.hstack([eye, eye]), wanted, np.inf),
        ]
        solved = milp(
            np.concatenate([np.zeros(n), np.ones(n)]),
            constraints=constraints,
            # Counts are whole numbers; the distances follow from them.
            integrality=np.concatenate([np.ones(n), np.zeros(n)]),
            bounds=Bounds(np.concatenate([least, np.zeros(n)]), np.concatenate([self.sizes, self.sizes])),
            options={"time_limit": MILP_SECONDS},
        )
        return self.sizes if solved.x is None else np.round(solved.x[:n]).astype(np.int64)
