"""Search for hyperparameters with Optuna, ending trials early when they fall behind.

The same as `segdpo search`; `python scripts/search.py --help` has the options.
"""

import sys

from segdpo.cli import main

if __name__ == "__main__":
    sys.exit(main(["search", *sys.argv[1:]]))
