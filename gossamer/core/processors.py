"""How many processor cores this process may use, which can be fewer than the machine has."""

import os
from pathlib import Path

USUAL = 2  # threads of a runtime where nobody says how many: what phones and small servers give to one network
CGROUP = Path("/sys/fs/cgroup")


def available() -> int:
    """Cores that the scheduler lets this process run on, and that its container pays for; at least 1."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _quota()
    return max(1, min(allowed, int(quota))) if quota else allowed


def usual_threads() -> int:
    """Threads of a runtime where nobody says how many."""
    return min(USUAL, available())


def _quota() -> float | None:
    """Cores of the container's quota, version 2 or 1 of control groups; None: no limit."""
    groups = _groups()
    limits = [_limit(folder / "cpu.max") for folder in _upward(CGROUP, groups.get("", "/"))]
    older = _upward(CGROUP / "cpu", groups.get("cpu", "/"))
    limits += [_limit(folder / "cpu.cfs_quota_us", folder / "cpu.cfs_period_us") for folder in older]
    return min((limit for limit in limits if limit), default=None)


def _groups() -> dict[str, str]:
    """The control group of this process by controller; "" is version 2's."""
    try:
        lines = [line.split(":", 2) for line in Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines()]
    except OSError:
        return {}
    return {name: path for _, names, path in lines for name in names.split(",")}


def _upward(root: Path, group: str) -> list[Path]:
    """The group's folder and all above it: the tightest limit counts. In a container the group may be the root."""
    folder = root / group.lstrip("/")
    inside = [one for one in (folder, *folder.parents) if one == root or root in one.parents]
    return inside or [root]


def _limit(quota: Path, period: Path | None = None) -> float | None:
    """Quota over period, in cores: both numbers of one file, or one number of each of two."""
    try:
        numbers = " ".join(file.read_text(encoding="utf-8") for file in (quota, period) if file is not None).split()
        return float(numbers[0]) / float(numbers[1]) if float(numbers[0]) > 0 else None
    except (OSError, ValueError, IndexError, ZeroDivisionError):  # "max", or no such file: no limit
        return None
