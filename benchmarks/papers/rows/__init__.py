"""The rows, one file each: `ROW`. A file's name is the number of the paper in the survey, and what is done."""

import importlib
import pkgutil
from functools import cache

from benchmarks.papers._row import Row


@cache
def all_rows() -> dict[str, Row]:
    """Every row by its name, "27-lenet300" for `p27_lenet300.py`."""
    files = sorted(module.name for module in pkgutil.iter_modules(__path__))
    return {
        name.removeprefix("p").replace("_", "-"): importlib.import_module(f"{__name__}.{name}").ROW for name in files
    }
