"""Turn a data set from one form into another, losing nothing: folder, pack, COCO.

    python scripts/pack.py FOLDER NAME.pack        for speed
    python scripts/pack.py NAME.pack FOLDER        for people
    python scripts/pack.py NAME.pack COCO/NAME.json
    python scripts/pack.py conf/data/bubil.yaml bubil.pack [key=value …]

The target's suffix chooses its form, or --to does. A pack that was interrupted is gone on with.
"""

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track

from segdpo.data import open_source, write_coco, write_folder, write_pack
from segdpo.files import DataError

FORMS = {".pack": "pack", ".json": "coco"}


def main() -> int:
    """Run the command line and return the exit status."""
    options = _parse()
    form = options.to or FORMS.get(options.target.suffix, "folder")
    if (options.manifest and form != "folder") or ((options.records_per_shard or options.images) and form != "pack"):
        return _fail(f"--manifest is for a folder, the rest for a pack, but {options.target} is a {form}.")

    def progress(records: Iterable[Any]) -> Iterable[Any]:
        return track(records, f"writing {options.target}", console=Console(stderr=True))

    try:
        source = open_source(options.source, options.options, channels=None)
        if form == "pack":
            write_pack(options.target, source, options.records_per_shard, options.images, progress)
        elif form == "coco":
            write_coco(options.target, source, source.classes, progress)
        else:
            write_folder(options.target, source, source.classes, options.manifest or "jsonl", progress)
    except (DataError, OSError) as error:
        return _fail(str(error))
    print(f"{options.target}: {len(source)} images, a {form}")
    return 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="a folder, a pack, a COCO .json, or a .yaml of conf/data/")
    parser.add_argument("target", type=Path, help="where to write")
    parser.add_argument("options", nargs="*", help="key=value for a .yaml")
    parser.add_argument("--to", choices=("folder", "pack", "coco"), help="the target's form, whatever its suffix")
    parser.add_argument("--manifest", choices=("jsonl", "csv"), help="of a folder; jsonl if not said")
    parser.add_argument("--images", choices=("files", "pixels"), help="of a pack; pixels read faster than PNG")
    parser.add_argument("--records-per-shard", type=int, help="of a pack; 64 if not said")
    return parser.parse_intermixed_args()


def _fail(message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
