"""A few threads that share the work of one call."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from itertools import pairwise
from typing import Any

WORTH_A_THREAD = 150.0  # microseconds of work; to hand a part to another thread and to wait for it takes about 50


class Workers:
    """Threads for compiled code, which runs without Python's lock.

    Args:
        threads: how many, the caller's own included.
        least: microseconds of work that are worth a thread.
    """

    def __init__(self, threads: int, least: float = WORTH_A_THREAD) -> None:
        self.threads, self.least = threads, least

    @cached_property
    def _pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(self.threads - 1, "binary")

    def run(
        self,
        function: Callable[..., Any],
        count: int,
        arguments: Callable[[int, int], tuple[Any, ...]],
        microseconds: float,
    ) -> None:
        """Call a function on parts of `count` pieces of work, one part for each thread that is worth it.

        Args:
            function: compiled.
            count: pieces of work.
            arguments: gives those of the pieces from a number to another.
            microseconds: about, of one thread for all pieces on a fast processor.
        """
        parts = max(1, min(self.threads, count, int(microseconds / self.least)))
        ends = [count * part // parts for part in range(parts + 1)]
        others = [self._pool.submit(function, *arguments(a, b)) for a, b in pairwise(ends[1:])]
        function(*arguments(0, ends[1]))
        for other in others:
            other.result()
