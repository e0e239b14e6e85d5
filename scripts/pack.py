"""Convert a data set, without loss, between folder, pack and COCO.

The same as `segdpo pack`; `python scripts/pack.py --help` has the options.
"""

import sys

from segdpo.cli import main

if __name__ == "__main__":
    sys.exit(main(["pack", *sys.argv[1:]]))
