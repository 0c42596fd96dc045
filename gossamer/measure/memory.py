"""How much memory a piece of work needs at its peak."""

import resource
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

STATUS = Path("/proc/self/status")


def peak_growth(work: Callable[[], Any]) -> int:
    """Bytes by which the resident memory of this process rises above its present size while the work runs.

    Honest only in a fresh process: what the allocators kept from before is used again without being seen. On Linux
    the kernel's high-water mark is reset first; elsewhere the mark of the whole life of the process must do.
    """
    reset = Path("/proc/self/clear_refs")
    try:
        reset.write_text("5")
        before, field = _status("VmRSS"), "VmHWM"
    except OSError:
        before, field = _lifetime_peak(), ""
    work()
    return max(0, (_status(field) if field else _lifetime_peak()) - before)


def _status(field: str) -> int:
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(f"{field}:"))
    return 1024 * int(line.split()[1])


def _lifetime_peak() -> int:
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
