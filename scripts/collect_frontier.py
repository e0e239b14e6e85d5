"""Gather a frontier: reward against KL to the reference, over seeds, as table, CSV and picture.

    python train.py -m experiment=frontier
    python scripts/collect_frontier.py multirun/frontier

Any runs of one judge will do: rows are methods and their strengths, their seeds put together. Runs without a
summary.json, seeds that a row lacks and numbers that are none are named below the table.
"""

import argparse
import sys
from pathlib import Path

from segdpo.files import write_atomically
from segdpo.reports import frontier_csv, frontier_markdown, frontier_picture, read_frontier


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
    text = frontier_markdown(frontier)
    write_atomically(out / "frontier.md", text.encode())
    write_atomically(out / "frontier.csv", frontier_csv(frontier).encode())
    for form in ("svg", "png"):
        write_atomically(out / f"frontier.{form}", frontier_picture(frontier, form))
    print(text, end="")
    print(f"table, numbers and pictures: {out}/frontier.md, .csv, .svg, .png", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
