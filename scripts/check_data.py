"""Read a whole data set, list what is wrong with it, and draw it on one page.

    python scripts/check_data.py PATH_OR_YAML [key=value …] [--html sheet.html] [--require-pairs] [--allow KIND …]

Exit status 1 when anything is wrong. docs/data.md says what each finding means.
"""

import argparse
import sys
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import track

from segdpo.data import Check, check_source, open_source
from segdpo.files import DataError
from segdpo.reports import ContactSheet

SHOWN = 50
COLOUR = {"error": "red", "warning": "yellow", "info": "dim"}


def main() -> int:
    """Run the command line and return the exit status."""
    options = _parse()
    console = Console(soft_wrap=True)
    try:
        source = open_source(options.data, options.options, channels=None)
    except DataError as error:
        console.print(f"[red]error[/red] {error.kind}: {escape(str(error))}")
        return 1
    sheet = ContactSheet(source.classes, len(source), options.images)
    check = check_source(
        source,
        require_pairs=options.require_pairs,
        allow=options.allow,
        progress=lambda numbers: track(numbers, "checking", console=Console(stderr=True)),
        on_record=sheet.see if options.html else None,
    )
    if options.html:
        options.html.parent.mkdir(parents=True, exist_ok=True)
        options.html.write_text(sheet.html(options.data, check), encoding="utf-8", errors="backslashreplace")
    _print(console, check, options)
    return int(check.failed)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="a folder, a pack, a COCO .json, or a .yaml of conf/data/")
    parser.add_argument("options", nargs="*", help="key=value for a .yaml")
    parser.add_argument("--html", type=Path, help="write the contact sheet here")
    parser.add_argument("--images", type=int, default=40, help="how many images the sheet shows, beside faulty ones")
    parser.add_argument("--require-pairs", action="store_true", help="an image without preferences is wrong")
    parser.add_argument("--allow", action="append", default=[], metavar="KIND", help="a kind of finding that is fine")
    return parser.parse_intermixed_args()


def _print(console: Console, check: Check, options: argparse.Namespace) -> None:
    for finding in [finding for finding in check.findings if finding.level != "info"][:SHOWN]:
        colour = COLOUR[finding.level]
        console.print(
            f"[{colour}]{finding.level}[/{colour}] {finding.kind}: {escape(finding.id)}: {escape(finding.message)}"
        )
    for (level, kind), number in check.counts().items():
        console.print(f"[{COLOUR[level]}]{number} × {kind} ({level})[/{COLOUR[level]}]")
    verdict = "[red]something is wrong[/red]" if check.failed else "[green]nothing is wrong[/green]"
    console.print(f"{check.records} images, {check.masks} candidate masks, {check.pairs} pairs: {verdict}")
    if options.html:
        console.print(f"contact sheet: {options.html}")


if __name__ == "__main__":
    sys.exit(main())
