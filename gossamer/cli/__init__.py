"""The command line: the only part of gossamer that prints, reads argv or exits.

Nothing here imports torch before a command needs it, so that `gossamer --help` answers at once.
"""

import os
import sys
import warnings

from gossamer.cli.app import app
from gossamer.cli.signals import INTERRUPTED, ended_in_order
from gossamer.cli.streams import open_streams, usable_stdout

__all__ = ["app", "main"]


def main() -> None:
    """Entry point of the `gossamer` command."""
    if not sys.warnoptions:  # what libraries warn of is for developers; they ask for it with -W or PYTHONWARNINGS
        warnings.simplefilter("ignore")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # the same for torch's C++, also in worker processes
    open_streams()
    try:
        with ended_in_order():
            app(prog_name="gossamer")
    except KeyboardInterrupt as error:
        sys.exit(getattr(error, "status", INTERRUPTED))
    finally:
        usable_stdout()
