"""Write one HTML file about a run, several runs or a sweep; it needs no network to open.

    python scripts/report.py outputs/mine
    python scripts/report.py multirun/losses --out losses.html
    python scripts/report.py multirun/worth_few_masks --dense dense_gold --against sft

The page names what is missing: unfinished runs, seeds, an evaluation. docs/reports.md describes its sections.
"""

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import track

from segdpo.files import write_atomically
from segdpo.reports import html_report


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, metavar="RUN|SWEEP", help="what train.py wrote")
    parser.add_argument(
        "--out", type=Path, help="the file to write (default: report.html in the folder; of several folders, here)"
    )
    parser.add_argument(
        "--dense", metavar="GROUP", help="the group trained on dense gold masks; adds the share that others recover"
    )
    parser.add_argument("--against", metavar="GROUP", help="adds each group's difference to this one, seed by seed")
    options = parser.parse_args(arguments)
    out: Path = options.out or (options.folders[0] if len(options.folders) == 1 else Path()) / "report.html"
    try:
        page = html_report(options.folders, _watched, dense=options.dense, against=options.against)
        write_atomically(out, page.encode())
    except (OSError, ValueError) as error:
        print(error.strerror if isinstance(error, OSError) and error.strerror else error, file=sys.stderr)
        return 1
    print(out)
    return 0


def _watched(runs: Sequence[Path]) -> Iterable[Path]:
    return track(runs, "reading", transient=True, console=Console(stderr=True))


if __name__ == "__main__":
    sys.exit(main())
