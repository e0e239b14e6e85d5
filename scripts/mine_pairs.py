"""The former name of scripts/mine.py, for one release."""

import sys

from segdpo.cli import renamed_script

if __name__ == "__main__":
    sys.exit(renamed_script("mine_pairs.py", "mine", sys.argv[1:]))
