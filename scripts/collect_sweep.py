"""Collect the runs of a sweep or a search: mean over seeds with a 95 % interval, as table, Markdown, CSV and picture.

    python train.py -m loss=sft,dpo,hinge_anchor seed=0,1,2,3,4 hydra.sweep.dir=multirun/losses
    python scripts/collect_sweep.py multirun/losses
    python scripts/collect_sweep.py multirun/worth_few_masks --dense dense_gold --against sft

Runs with the same options, except seed and threads, are one row. Unfinished runs are counted and named.
"""

import argparse
import sys
from pathlib import Path

from rich.console import Console

from segdpo.files import write_atomically
from segdpo.reports import read_sweep


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the sweep wrote its runs, e.g. multirun/losses")
    parser.add_argument("--out", type=Path, help="gets sweep.md, sweep.csv and sweep.png (here: the sweep's folder)")
    parser.add_argument("--ignore", action="append", default=[], metavar="KEY", help="an option that makes no new row")
    parser.add_argument("--dense", metavar="ROW", help="the row trained on dense gold masks: adds what others recover")
    parser.add_argument("--against", metavar="ROW", help="adds each row's difference to this one, seed by seed")
    options = parser.parse_args(arguments)
    try:
        sweep = read_sweep(options.folder, options.ignore, dense=options.dense, against=options.against)
    except ValueError as error:
        parser.error(str(error))
    out: Path = options.out or options.folder
    write_atomically(out / "sweep.md", sweep.markdown().encode())
    write_atomically(out / "sweep.csv", sweep.csv().encode())
    write_atomically(out / "sweep.png", sweep.png())
    console = Console()
    if console.is_terminal:
        console.print(sweep.terminal())
        console.print("\n".join(sweep.notes()), soft_wrap=True, markup=False)
        console.print(sweep.unfinished_note(), style="yellow", soft_wrap=True, markup=False)
    else:  # into a file or another program
        print(sweep.markdown(), end="")
    print(f"table, numbers and picture: {out}/sweep.md, .csv, .png", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
