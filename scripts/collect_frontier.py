"""Collect a frontier: reward against KL to the reference, over seeds, as table, CSV and picture.

    python train.py -m experiment=frontier
    python scripts/collect_frontier.py multirun/frontier

A row is a method at one strength, over its seeds; all runs must have the same judge. Unfinished runs, missing seeds and
values that are not numbers are named below the table.
"""

import argparse
import sys
from pathlib import Path

from segdpo.files import write_atomically
from segdpo.reports import read_frontier


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the sweep wrote its runs, e.g. multirun/frontier")
    parser.add_argument("--out", type=Path, help="gets frontier.md, .csv, .svg and .png (here: the sweep's folder)")
    options = parser.parse_args(arguments)
    try:
        frontier = read_frontier(options.folder)
    except ValueError as error:
        parser.error(str(error))
    out: Path = options.out or options.folder
    text = frontier.markdown()
    write_atomically(out / "frontier.md", text.encode())
    write_atomically(out / "frontier.csv", frontier.csv().encode())
    for form in ("svg", "png"):
        write_atomically(out / f"frontier.{form}", frontier.picture(form))
    print(text, end="")
    print(f"table, numbers and pictures: {out}/frontier.md, .csv, .svg, .png", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
