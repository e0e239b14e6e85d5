"""Convert a data set, without loss, between folder, pack and COCO.

The same as `segdpo pack`; `python scripts/pack.py --help` has the options.
"""

import sys

from segdpo.cli import pack

if __name__ == "__main__":
    sys.exit(pack(sys.argv[1:]))
