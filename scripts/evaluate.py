"""Measure a model, or two against each other, on images with gold masks.

The same as `segdpo evaluate`; `python scripts/evaluate.py --help` has the options.
"""

import sys

from segdpo.cli import main

if __name__ == "__main__":
    sys.exit(main(["evaluate", *sys.argv[1:]]))
