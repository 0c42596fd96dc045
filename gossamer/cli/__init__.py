"""The command line: the only part of gossamer that prints, reads argv or exits.

Nothing here imports torch before a command needs it, so that `gossamer --help` answers at once.
"""

import sys
import warnings

from gossamer.cli.app import app
from gossamer.cli.exits import INTERRUPTED

__all__ = ["app", "main"]


def main() -> None:
    """Entry point of the `gossamer` command."""
    if not sys.warnoptions:  # what libraries warn of is for developers; they ask for it with -W or PYTHONWARNINGS
        warnings.simplefilter("ignore")
    try:
        app(prog_name="gossamer")
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
