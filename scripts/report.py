"""Write one HTML page about a run, several runs or a sweep.

The same as `segdpo report`; `python scripts/report.py --help` has the options.
"""

import sys

from segdpo.cli import main

if __name__ == "__main__":
    sys.exit(main(["report", *sys.argv[1:]]))
