"""The papers' headline numbers, measured again: one row each, met or missed by how much.

    python -m benchmarks.papers list
    python -m benchmarks.papers run 27-lenet300 26-merge --seeds 0 1 2
    python -m benchmarks.papers run all                    # that a processor can; continues where it was stopped
    python -m benchmarks.papers table                      # docs/reproduction.md from the JSON alone

Every row is a file in `rows/`. What a seed measured is written when it is there, to `results/papers/ROW.json`.
"""

import argparse
from collections.abc import Sequence

import torch

from benchmarks.common.tables import wrapped
from benchmarks.papers import _page, _results
from benchmarks.papers.rows import all_rows
from gossamer.core.record import write_text


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.papers", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="measure rows")
    run.add_argument("rows", nargs="+", metavar="ROW", help='names as `list` prints them, or "all"')
    run.add_argument("--seeds", nargs="+", type=int, help="instead of the rows' own")
    run.add_argument("--threads", type=int, default=1)
    commands.add_parser("list", help="print the rows and which seeds are measured")
    commands.add_parser("table", help="write docs/reproduction.md")
    options = parser.parse_args(argv)
    known = all_rows()
    if options.command == "run":
        if wrong := [name for name in options.rows if name not in known and name != "all"]:
            parser.error(f"unknown rows {wrong}; known: {', '.join(known)}")
        if "all" in options.rows:
            options.rows = [name for name, row in known.items() if not row.needs]
    return options


def main(argv: Sequence[str] | None = None) -> None:
    """Do what the command line says."""
    options = parse(argv)
    if options.command == "run":
        torch.set_num_threads(options.threads)
        _results.FOLDER.mkdir(parents=True, exist_ok=True)
        _results.run(options.rows, options.seeds)
    elif options.command == "table":
        _results.write_facts(all_rows())
        write_text(_page.PAGE, _page.page(_results.read()))
    else:
        for name, row in all_rows().items():
            done = ", ".join(_results.document_of(name, row)["by_seed"]) or "none"
            takes = f"{row.minutes:g} minutes a seed" if row.measure else row.needs
            print(wrapped(f"{name}: {row.title}; {takes}; seeds measured: {done}"))


if __name__ == "__main__":
    main()
