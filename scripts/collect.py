"""Gather the runs of a sweep or a search in one table, with intervals over seeds.

The same as `segdpo collect`; `python scripts/collect.py --help` has the options.
"""

import sys

from segdpo.cli import main

if __name__ == "__main__":
    sys.exit(main(["collect", *sys.argv[1:]]))
