"""The former name of scripts/collect.py, for one release."""

import sys

from segdpo.cli import renamed_script

if __name__ == "__main__":
    sys.exit(renamed_script("collect_frontier.py", "collect --frontier", sys.argv[1:]))
