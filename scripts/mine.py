"""Make a data set of preferences: candidate masks, a judge, questions (conf/mine.yaml).

The same as `segdpo mine`; `python scripts/mine.py --help` has the options.
"""

import sys

from segdpo.cli import main

if __name__ == "__main__":
    sys.exit(main(["mine", *sys.argv[1:]]))
