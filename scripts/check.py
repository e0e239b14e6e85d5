"""Read a whole data set and list what is wrong with it.

The same as `segdpo check`; `python scripts/check.py --help` has the options.
"""

import sys

from segdpo.cli import main

if __name__ == "__main__":
    sys.exit(main(["check", *sys.argv[1:]]))
