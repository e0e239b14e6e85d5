"""Predict masks for an image or a folder of images of any size.

The same as `segdpo predict`; `python scripts/predict.py --help` has the options.
"""

import sys

from segdpo.cli import main

if __name__ == "__main__":
    sys.exit(main(["predict", *sys.argv[1:]]))
