"""The former name of scripts/check.py, for one release."""

import sys

from segdpo.cli import renamed_script

if __name__ == "__main__":
    sys.exit(renamed_script("check_data.py", "check", sys.argv[1:]))
